from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx.decoder import Decoder
from edge_runtime.export import export_checkpoint
from edge_runtime.export.decoder import build_decoder
from edge_runtime.export.graph import Graph
from edge_runtime.export.quant import FP32
from edge_runtime.export.safetensors import Checkpoint
from edge_runtime.export.weights import Weights
from tests.export.decoding import Runner
from tests.export.reference import forward
from tests.export.tiny import CONFIG, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

LARGE = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
EXPERTS = {"enable_moe_block": True, "num_experts": 9, "top_k_experts": 2, "moe_intermediate_size": 32}

IDS = np.random.default_rng(5).integers(0, 96, 48)


def build(folder: Path, recipe: str = "fp32", **changes: Any) -> tuple[Path, dict[str, Any]]:
    tensors = write_checkpoint(folder / "model", **changes)
    export_checkpoint(folder / "model", folder / "bundle", recipe=recipe)
    return folder / "bundle", tensors


shapes = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
        {"hidden_size": 48, "hidden_size_per_layer_input": 12, "num_kv_shared_layers": 4},
        LARGE,
        {**LARGE, **EXPERTS},
        {**EXPERTS, "num_experts": 4, "top_k_experts": 4, "moe_intermediate_size": 12},
    ],
    ids=["shared", "plain", "odd sizes", "values from keys", "experts", "all experts, shared"],
)


@shapes
def test_logits_equal_those_of_numpy(tmp_path: Path, changes: dict[str, Any]) -> None:
    bundle, tensors = build(tmp_path, **changes)
    expected = forward(tensors, {**CONFIG, **changes}, IDS)
    logits, _ = Runner(bundle, read_manifest(bundle), chunk=48).step(IDS, 48)
    assert np.abs(logits - expected).max() < 1e-3


@shapes
def test_steps_of_few_tokens_equal_others(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Alone and up to four at a time, before and past the window (6), for any number of key heads."""
    bundle, tensors = build(tmp_path, **changes)
    expected = forward(tensors, {**CONFIG, **changes}, IDS)
    few, many = (Runner(bundle, read_manifest(bundle), chunk=7) for _ in range(2))
    many.few = 0
    at = 0
    for size in (2, 1, 3, 1, 4, 1, 1, 7, 4, 2, 4, 4, 1, 1, 7, 1, 4):
        ids = IDS[at : at + size]
        at += size
        first, second = few.step(ids, size)[0], many.step(ids, size)[0]
        assert np.abs(first - expected[at - size : at]).max() < 1e-3
        assert np.abs(first - second).max() < 1e-5
    assert at == len(IDS)
    for place, cache in few.caches.items():
        rows = few.total if few.text.is_full(place[0]) else few.resident
        assert np.abs(cache.numpy() - many.caches[place].numpy())[:, :, :rows].max() < 1e-5


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


@pytest.mark.parametrize(
    "changes", [{}, {"sliding_window": 40}, {**LARGE, **EXPERTS}], ids=["shared", "long window", "as 26B-A4B"]
)
def test_images_see_themselves_whole(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The graph of a model that sees, on tokens that stand for soft ones; images longer than the window and not."""
    images = [(3, 12), (14, 18), (25, 37)]
    bundle, tensors = build(tmp_path, **changes)
    manifest = read_manifest(bundle)
    text = replace(manifest.geometry.text, bidirectional_images=True)
    with Checkpoint(tmp_path / "model") as checkpoint, Graph(bundle, names.DECODER, lambda _: FP32) as graph:
        build_decoder(graph, Weights.of_decoder(checkpoint), text)
        graph.save()
    expected = forward(tensors, {**CONFIG, **changes}, IDS, images=images)
    assert np.abs(expected - forward(tensors, {**CONFIG, **changes}, IDS)).max() > 0.1
    seeing = replace(manifest, geometry=replace(manifest.geometry, text=text))
    decoder = Decoder(bundle, seeing, context=48, threads=1, chunk=48)
    for size in (48, 10, 1):
        decoder.begin(images)
        for first, end in decoder.cuts(48, size):
            keep = min((end - first + 1) // 2, decoder.most_kept)
            logits = decoder.step(IDS[first:end], decoder.embed(IDS[first:end]), keep)
            assert np.abs(logits - expected[end - keep : end]).max() < 1e-3
    decoder.close()


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
