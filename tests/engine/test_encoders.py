"""Towers of the built-in model: pictures of any shape and budget, and nothing opened before it is needed."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx.encoders import Encoders
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.protocol import Request
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.chat import Media
from edge_runtime.gemma.image import BUDGETS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def encoders(fp32_bundle: Path) -> Iterator[Encoders]:
    encoders = Encoders(fp32_bundle, read_manifest(fp32_bundle), threads=1)
    yield encoders
    encoders.close()


@pytest.mark.parametrize(
    "budget", [pytest.param(budget, marks=[pytest.mark.slow] if budget > 280 else []) for budget in BUDGETS]
)
def test_every_budget(encoders: Encoders, budget: int):
    tokens = encoders.encode(encoders.prepare(Media("image", picture(640, 480)), budget))
    assert 0.85 * budget < len(tokens) <= budget
    assert np.isfinite(tokens).all()


@pytest.mark.parametrize("size", [(600, 40), (40, 600), (300, 200), (7, 7)])
def test_any_shape(encoders: Encoders, size: tuple[int, int]):
    prepared = encoders.prepare(Media("image", picture(*size)), 70)
    tokens = encoders.encode(prepared)
    columns, rows = prepared.patches.positions.max(0) + 1
    assert len(tokens) == columns * rows // 9
    assert 0.5 < columns / rows / (size[0] / size[1]) < 2


def test_text_opens_no_tower(fp32_bundle: Path, tmp_path: Path):
    shutil.copytree(fp32_bundle, tmp_path / "bundle", copy_function=os.link)
    engine = OnnxEngine(tmp_path / "bundle", threads=1)
    for graph in (names.VISION, names.AUDIO, names.DRAFTER):
        (tmp_path / "bundle" / graph).unlink(missing_ok=True)
    assert list(engine.run(Request(messages=[{"role": "user", "content": "Hello"}], max_tokens=2)))
    image = [{"role": "user", "content": [{"type": "image", "image": picture(48, 48)}]}]
    with pytest.raises(EdgeRuntimeError, match=names.VISION):
        list(engine.run(Request(messages=image, max_tokens=2)))
    engine.close()
