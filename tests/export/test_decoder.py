from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.export import export_checkpoint
from tests.export.decoding import Runner
from tests.export.tiny import CONFIG, forward, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

IDS = np.random.default_rng(5).integers(0, 96, 48)


def build(folder: Path, recipe: str = "fp32", **changes: Any) -> tuple[Path, dict[str, Any]]:
    tensors = write_checkpoint(folder / "model", **changes)
    export_checkpoint(folder / "model", folder / "bundle", recipe=recipe)
    return folder / "bundle", tensors


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
        {"hidden_size": 48, "hidden_size_per_layer_input": 12, "num_kv_shared_layers": 4},
    ],
    ids=["shared", "plain", "odd sizes"],
)
def test_logits_equal_those_of_numpy(tmp_path: Path, changes: dict[str, Any]) -> None:
    bundle, tensors = build(tmp_path, **changes)
    expected = forward(tensors, {**CONFIG, **changes}, IDS)
    logits, _ = Runner(bundle, read_manifest(bundle), chunk=48).step(IDS, 48)
    assert np.abs(logits - expected).max() < 1e-3


@pytest.mark.parametrize("recipe", ["fp32", "int4"])
@pytest.mark.parametrize("chunks", [[9, 1, 1, 7, 9, 1, 9, 9, 1, 1], [1] * 48, [40, 8]], ids=["mixed", "single", "two"])
def test_chunks_and_kept_positions_change_nothing(tmp_path: Path, recipe: str, chunks: list[int]) -> None:
    """Past the window (6), with buffers that must be moved, for any number of kept positions."""
    bundle, _ = build(tmp_path, recipe)
    manifest = read_manifest(bundle)
    whole, hidden = Runner(bundle, manifest, chunk=48).step(IDS, 48)
    runner, at = Runner(bundle, manifest, chunk=max(chunks)), 0
    for index, size in enumerate(chunks):
        keep = 1 + index % size
        logits, last = runner.step(IDS[at : at + size], keep)
        at += size
        assert logits.shape[0] == keep
        # int4 rounds activations to int8 too, and a last bit that differs between kernels can tip one over.
        limit = 1e-4 if recipe == "fp32" else 0.2
        assert np.abs(logits - whole[at - keep : at]).max() < limit
        assert np.abs(last - hidden[at - keep : at]).max() < limit


def test_soft_tokens_take_the_pad_row(tmp_path: Path) -> None:
    """Embeddings given from outside flow through the context part of the per-layer inputs."""
    bundle, tensors = build(tmp_path)
    manifest = read_manifest(bundle)
    altered = dict(tensors)
    altered["model.embed_tokens_per_layer.weight"] = np.array(tensors["model.embed_tokens_per_layer.weight"])
    altered["model.embed_tokens_per_layer.weight"][7] = tensors["model.embed_tokens_per_layer.weight"][0]
    expected = forward(altered, CONFIG, np.array([3, 7, 7, 4]))
    runner = Runner(bundle, manifest)
    embeds = runner.embed.read(np.array([3, 7, 7, 4]))
    logits, _ = runner.step([3, 7, 7, 4], 4, embeds=embeds, ple_ids=np.array([3, 0, 0, 4]))
    assert np.abs(logits - expected).max() < 1e-3


def test_int4_stays_close(tmp_path: Path) -> None:
    bundle, tensors = build(tmp_path, "int4")
    logits, _ = Runner(bundle, read_manifest(bundle), chunk=48).step(IDS, 48)
    expected = forward(tensors, CONFIG, IDS)
    assert np.corrcoef(logits.reshape(-1), expected.reshape(-1))[0, 1] > 0.9


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_half_precision_checkpoints(tmp_path: Path, dtype: str) -> None:
    bundle, tensors = build(tmp_path, dtype=dtype)
    logits, _ = Runner(bundle, read_manifest(bundle), chunk=48).step(IDS, 48)
    expected = forward(tensors, CONFIG, IDS)
    assert np.corrcoef(logits.reshape(-1), expected.reshape(-1))[0, 1] > 0.999
