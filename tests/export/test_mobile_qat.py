"""Checkpoints in the form of the vendor's mobile ones: 2, 4 and 8 bits a channel, activations on grids of their own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest, verify
from edge_runtime.bundle.shared_table import SharedTable
from edge_runtime.bundle.tables import Table
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import export_checkpoint
from edge_runtime.export.grids import Packed
from edge_runtime.export.qat import adopt_grids
from edge_runtime.export.quant import Format, Grid, pack
from edge_runtime.export.safetensors import Checkpoint
from tests.export.decoding import Runner, session
from tests.export.stored import rounded_matrices
from tests.export.tiny import CONFIG, write_checkpoint, write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

EMBEDDING = "model.embed_tokens"
PER_LAYER = "model.embed_tokens_per_layer"
BITS = {r"^lm_head$": 2, r"embed_tokens$": 2, r"per_layer_": 8, r"layers\.[45]\.mlp\.": 2}
QUANTIZED = {
    "quant_method": "gemma",
    "num_bits": 4,
    "module_quant_configs": {pattern: {"num_bits": bits} for pattern, bits in BITS.items()},
}
ONE_KEY_HEAD = {"num_key_value_heads": 1, "tie_word_embeddings": False}
AUDIO = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "output_proj_dims": 48}
VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
VISION |= {"num_key_value_heads": 4, "patch_size": 4, "position_embedding_size": 40}
STEP = 0.05


def bits_of(module: str) -> int:
    """The test's own reading of the patterns above."""
    if module in {"lm_head", EMBEDDING} or ".4.mlp" in module or ".5.mlp" in module:
        return 2
    return 8 if "per_layer_" in module and module != PER_LAYER else 4


def quantized(tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Grid]]:
    """Random levels in place of the matrices of a checkpoint, and what they are."""
    rng = np.random.default_rng(1)
    stored: dict[str, Any] = {}
    grids: dict[str, Grid] = {}
    for name, values in tensors.items():
        module = name.removesuffix(".weight")
        if values.ndim != 2 or "per_layer_model_projection" in name:
            stored[name] = values
            continue
        table, bits = "embed_tokens" in module, bits_of(module)
        top, groups = 1 << (bits - 1), CONFIG["num_hidden_layers"] if module == PER_LAYER else 1
        levels = rng.integers(-top, top, values.shape).astype(np.int8)
        steps = (rng.uniform(0.5, 1.5, (len(values), groups)) / top / values.shape[1] ** 0.5).astype(np.float32)
        grids[name] = Grid(levels, steps)
        stored[f"{module}.{'embedding_quantized' if table else 'weight'}"] = as_stored(levels, bits)
        stored[f"{module}.{'embedding_scale' if table else 'weight_scale'}"] = steps
        for side in () if table else ("input", "output"):
            stored[f"{module}.{side}_activation_scale"] = np.array(STEP, np.float32)
    head = grids[f"{EMBEDDING}.weight"]
    stored |= {"lm_head.weight": as_stored(head.levels, 2), "lm_head.weight_scale": head.steps}
    stored |= {f"lm_head.{side}_activation_scale": np.array(STEP, np.float32) for side in ("input", "output")}
    return stored, grids


def as_stored(levels: NDArray[np.int8], bits: int) -> NDArray[Any]:
    return levels if bits == 8 else pack(levels, bits)


def write(folder: Path, **changes: Any) -> dict[str, Grid]:
    """A checkpoint; `changes` replace what it stores."""
    stored, grids = quantized(write_checkpoint(folder, num_key_value_heads=1))
    write_safetensors(folder / "model.safetensors", {**stored, **changes})
    config = {**CONFIG, **ONE_KEY_HEAD, "quantization_config": QUANTIZED}
    (folder / "config.json").write_text(json.dumps(config))
    return grids


def test_levels_scales_and_steps_are_taken_over(tmp_path: Path) -> None:
    grids = write(tmp_path / "model")
    with Checkpoint(tmp_path / "model") as checkpoint:
        assert adopt_grids(checkpoint, {"quantization_config": QUANTIZED}, "model")
        assert "lm_head.weight" not in checkpoint
        for name, grid in grids.items():
            tensor = checkpoint.get(name)
            assert isinstance(tensor, Packed)
            assert tensor.native.bits == bits_of(name.removesuffix(".weight"))
            assert (tensor.read(1, 3) == grid.values()[1:3]).all()
        # The embedding has the steps of the head, which is the same matrix.
        for side in ("input", "output"):
            assert checkpoint.get(f"{EMBEDDING}.{side}_activation_scale").read() == np.float32(STEP)


@pytest.mark.parametrize("recipe", ["int4", "int8", "mobile", "fp32"])
def test_a_bundle_keeps_every_matrix_as_it_is(tmp_path: Path, recipe: str) -> None:
    grids = write(tmp_path / "model")
    report = export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe=recipe)
    assert verify(tmp_path / "bundle") == []
    manifest = read_manifest(tmp_path / "bundle")
    if recipe != "fp32":
        assert {error.name for error in report.errors if error.relative > 1e-6} <= {
            f"model.per_layer_model_projection.weight[{part}]" for part in ("0:128", "128:192")
        }
        found = rounded_matrices(tmp_path / "bundle" / names.DECODER)
        for name in (f"{EMBEDDING}.weight", "model.layers.0.mlp.gate_proj.weight", "model.layers.5.mlp.up_proj.weight"):
            form, values = found[name]
            assert form == Format(bits_of(name.removesuffix(".weight")), 64, "i8")
            assert np.allclose(values, grids[name].values(), rtol=1e-6)
        assert manifest.embedding
        with SharedTable(tmp_path / "bundle", manifest.embedding) as shared:
            read = shared.read(np.arange(96)) / manifest.embedding.multiplier
        assert np.allclose(read, grids[f"{EMBEDDING}.weight"].values(), rtol=1e-6)
    with Table(tmp_path / "bundle" / names.PLE_TABLE, manifest.tables[names.PLE_TABLE]) as table:
        read = table.read(np.arange(96)) / manifest.tables[names.PLE_TABLE].multiplier
    # A table keeps 8 bits of the square root of a block's scale; one of 8 bits rounds levels to its own.
    relative, absolute = {"fp32": (0, 1e-6), "int8": (2e-2, 1e-3)}.get(recipe, (2e-2, 1e-6))
    assert np.allclose(read, grids[f"{PER_LAYER}.weight"].values(), rtol=relative, atol=absolute)


def test_activations_are_rounded_where_they_were_in_training(tmp_path: Path) -> None:
    write(tmp_path / "model")
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="mobile")
    graph = onnx.load(str(tmp_path / "bundle" / names.DECODER), load_external_data=False).graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert rounded
    assert {onnx.numpy_helper.to_array(values[node.input[1]]).item() for node in rounded} == {np.float32(STEP)}
    # Gate and up are given the same, rounded once.
    taken = [node.input[0] for node in rounded]
    assert len(taken) == len(set(taken))
    ids = np.random.default_rng(0).integers(0, 96, 9)
    logits, _ = Runner(tmp_path / "bundle", read_manifest(tmp_path / "bundle")).step(ids, 9)
    cap = CONFIG["final_logit_softcapping"]
    levels = np.arctanh(logits / cap) * cap / STEP
    assert np.abs(levels - np.rint(levels)).max() < 1e-2
    assert np.rint(levels).min() >= -128
    assert np.rint(levels).max() <= 127


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lm_head.weight": np.zeros((96, 16), np.uint8)}, "output head"),
        ({"lm_head.weight_scale": np.zeros((96, 1), np.float32)}, "output head"),
        ({"model.layers.0.mlp.gate_proj.weight_scale": np.zeros((96, 3), np.float32)}, "cannot be read"),
        ({"model.layers.0.mlp.gate_proj.weight_scale": np.zeros((95, 1), np.float32)}, "cannot be read"),
        ({"model.layers.0.mlp.gate_proj.weight": np.zeros((96, 64), np.float32)}, "cannot be read"),
        ({"model.layers.0.mlp.gate_proj.weight": np.zeros((96, 16), np.uint8)}, "gate_proj"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write(tmp_path / "model", **changes)
    with pytest.raises(EdgeRuntimeError, match=said) as caught:
        export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="mobile")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.oracle
def test_the_decoder_is_that_of_transformers(tmp_path: Path) -> None:
    """A sum whose last bit differs may be rounded to the next step, and then some logits differ; most do not."""
    import torch

    from tests.export.oracle import mobile_model

    for seed, step in ((0, 0.0), (0, STEP), (1, STEP), (2, STEP)):
        folder = tmp_path / f"{seed} {step}"
        model = mobile_model(folder / "model", VISION, AUDIO, seed, step=step)
        ids = np.random.default_rng(seed).integers(0, 119, 40)
        with torch.no_grad():
            expected = model(input_ids=torch.tensor(ids)[None]).logits[0].numpy()
        for recipe in ("fp32", "mobile"):
            bundle = folder / recipe
            export_checkpoint(folder / "model", bundle, recipe=recipe)
            logits, _ = Runner(bundle, read_manifest(bundle), chunk=40).step(ids, 40)
            difference = np.abs(logits - expected)
            if step:
                assert np.median(difference) < 1e-4
            elif recipe == "fp32":
                assert difference.max() < 1e-3


@pytest.mark.oracle
def test_the_towers_are_those_of_transformers(tmp_path: Path) -> None:
    import torch

    from tests.export.oracle import mobile_model

    model = mobile_model(tmp_path / "model", VISION, AUDIO)
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="fp32")
    rng = np.random.default_rng(0)
    tower = session(tmp_path / "bundle" / names.AUDIO)
    mask = np.ones((1, 97), bool)
    mel = rng.standard_normal((1, 97, tower.get_inputs()[0].shape[2])).astype(np.float32)
    tower_of_images = session(tmp_path / "bundle" / names.VISION)
    pixels = rng.random((72, tower_of_images.get_inputs()[0].shape[1]), np.float32)
    grid = np.stack(np.meshgrid(np.arange(12), np.arange(6)), -1).reshape(-1, 2).astype(np.int64)
    with torch.no_grad():
        audio = model.model.get_audio_features(torch.tensor(mel), torch.tensor(mask))
        image = model.model.get_image_features(torch.tensor(pixels)[None], torch.tensor(grid)[None])
    (heard,) = tower.run(["audio_features"], {"input_features": mel, "input_features_mask": mask})
    (seen,) = tower_of_images.run(None, {"pixel_values": pixels, "pixel_position_ids": grid})
    assert np.median(np.abs(heard - audio.pooler_output[audio.attention_mask].numpy())) < 1e-4
    assert np.median(np.abs(seen - image.pooler_output[0].numpy())) < 1e-4
