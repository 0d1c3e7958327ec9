from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_runtime import media
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.image import BUDGETS, PatchGrid

SIZES = [(384, 384), (640, 480), (1, 1), (48, 48), (1200, 7), (5, 1500), (97, 333), (801, 77), (1000, 999), (3000, 20)]


@pytest.mark.oracle
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("size", SIZES)
def test_equals_transformers(size, budget):
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = Gemma4ImageProcessorPil(max_soft_tokens=budget)(images=[image], return_tensors="np")
    grid = PatchGrid().with_budget(budget)
    patches = grid.cut(media.resize(image, grid.target_size(*size)))
    count = len(patches.pixels)
    assert patches.soft_tokens == expected["num_soft_tokens_per_image"][0]
    assert np.array_equal(patches.pixels, expected["pixel_values"][0][:count])
    assert np.array_equal(patches.positions, expected["image_position_ids"][0][:count])
    assert (expected["image_position_ids"][0][count:] == -1).all()


@given(st.integers(1, 8000), st.integers(1, 8000), st.sampled_from(BUDGETS))
def test_target_fits_the_budget_in_whole_squares(width, height, budget):
    columns, rows = (side / 48 for side in PatchGrid().with_budget(budget).target_size(width, height))
    assert columns == int(columns) > 0
    assert rows == int(rows) > 0
    assert columns * rows <= budget


def test_patches_go_row_by_row_and_channels_last():
    rgb = np.arange(48 * 96 * 3, dtype=np.uint32).reshape(48, 96, 3).astype(np.uint8)
    patches = PatchGrid().cut(rgb)
    assert patches.pixels.shape == (18, 768)
    assert patches.soft_tokens == 2
    assert patches.positions[7].tolist() == [1, 1]
    assert np.allclose(patches.pixels[7].reshape(16, 16, 3), rgb[16:32, 16:32] / 255)


def test_settings_come_from_the_processor():
    grid = PatchGrid.from_config({"image_processor": {"max_soft_tokens": 70, "patch_size": 16}})
    assert grid.budget == 70
    assert PatchGrid.from_config({}).budget == 280


@pytest.mark.parametrize("budget", [0, 71, 2240])
def test_other_budgets_are_refused(budget):
    with pytest.raises(EdgeRuntimeError, match=f"image_tokens is {budget}; it can be 70, 140"):
        PatchGrid().with_budget(budget)


def test_no_pixels():
    with pytest.raises(EdgeRuntimeError, match="0 x 5 pixels"):
        PatchGrid().target_size(0, 5)
