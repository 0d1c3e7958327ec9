from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_runtime.engine.onnx.chunks import cuts, kept_bias, window_bias
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.onnx.kv_cache import Lengths
from edge_runtime.engine.protocol import Request
from edge_runtime.export import export_checkpoint
from tests.engine import runs

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([], [(0, 10), (10, 20), (20, 25)]),
        ([(2, 10), (10, 20)], [(0, 10), (10, 20), (20, 25)]),
        ([(8, 12)], [(0, 8), (8, 18), (18, 25)]),
        ([(8, 21), (22, 24)], [(0, 8), (8, 21), (21, 25)]),
        ([(0, 25)], [(0, 25)]),
    ],
)
def test_cuts_spare_images(images: list[tuple[int, int]], expected: list[tuple[int, int]]):
    assert list(cuts(25, 10, images)) == expected


@given(st.lists(st.integers(1, 9), max_size=8), st.integers(1, 8))
def test_cuts_cover_everything_once(sizes: list[int], chunk: int):
    edges = np.cumsum([0, *sizes])
    images = [(int(a), int(b)) for a, b in zip(edges[:-1:2], edges[1::2], strict=False)]
    runs = list(cuts(int(edges[-1]), chunk, images))
    assert [first for first, _ in runs] == [0, *[end for _, end in runs]][: len(runs)]
    assert all(first < end for first, end in runs)
    assert all(
        end <= first or last <= start or (start <= first and last <= end)
        for first, last in images
        for start, end in runs
    )
    assert all(end - start <= chunk or (start, end) in images for start, end in runs)


def test_window_bias():
    """Tokens 4..7 of a sequence whose rows 2..7 are resident, window 3, an image at 5 and 6."""
    bias = window_bias(Lengths(start=4, total=8, resident=6), 3, [(0, 2), (5, 7), (9, 11)])
    assert bias.shape == (1, 1, 4, 6)
    assert (bias[0, 0] == 0).astype(int).tolist() == [
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    assert bias.min() < -1e8


def test_an_image_is_read_whole_whatever_the_chunk(checkpoint: Path, engine: OnnxEngine, tmp_path: Path):
    """The built-in model, told that its images see themselves whole."""
    shutil.copytree(checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("drafter"))
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["use_bidirectional_attention"] = "vision"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="fp32")
    noise = np.random.default_rng(0).integers(0, 255, (700, 500, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    content = [{"type": "image", "image": str(tmp_path / "noise.png")}, {"type": "text", "text": "What is it?"}]
    request = Request(messages=[{"role": "user", "content": content}], image_tokens=280)
    whole = OnnxEngine(tmp_path / "bundle", threads=1)
    logits = []
    for chunk in (256, 37):
        whole._decoder.chunk = chunk
        logits.append(runs.first_logits(whole, whole.prepare(request)))
    whole.close()
    (span,) = engine.prepare(request).prompt.images
    assert span[1] - span[0] > 256
    assert np.abs(logits[0] - logits[1]).max() < 1e-3
    assert np.abs(logits[0] - runs.first_logits(engine, engine.prepare(request))).max() > 1e-2


def test_kept_bias():
    lengths = Lengths(start=4, total=8, resident=6)
    assert (kept_bias(lengths, 2, 0) == 0).tolist() == [[True] * 7 + [False], [True] * 8]
    # Rows of positions 2 to 7, and three that are not there.
    assert (kept_bias(lengths, 2, 9, 3) == 0).astype(int).tolist() == [
        [0, 0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0, 0],
    ]
    # An image at 5 and 6 sees itself whole.
    assert (kept_bias(lengths, 3, 0, 3, [(5, 7)]) == 0).astype(int).tolist()[0] == [0, 1, 1, 1, 1, 0]
