"""Rounded decoders, error by error: what rounding weights does, what rounding activations does, what kernels add.

`pytest -s tests/export/test_quantized.py` prints the three.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.export import export_checkpoint
from edge_runtime.export.decoder import build_decoder
from edge_runtime.export.graph import Graph
from edge_runtime.export.quant import Format
from edge_runtime.export.safetensors import Checkpoint
from edge_runtime.export.weights import Weights
from tests.export.decoding import Runner
from tests.export.reference import forward
from tests.export.tiny import CONFIG, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

IDS = np.random.default_rng(5).integers(0, 96, 48)
# Whole heads turn and all share one key head, so that the graph keeps the checkpoint's order of rows.
ORDERED: dict[str, Any] = {
    "num_key_value_heads": 1,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 1.0, "rope_theta": 1e6},
    },
}
EXPERTS = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "shared layers": {},
    "experts": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, **EXPERTS},
}
# Widths of 64 and 96 take blocks of 64 and of 32.
FORMATS = {
    "4 bits": Format(4),
    "4 bits, blocks of 64, f16 scales": Format(4, 64, "f16"),
    "8 bits": Format(8),
    "8 bits, blocks of 64, i8 scales": Format(8, 64, "i8"),
    "2 bits, i8 scales": Format(2, 32, "i8"),
}
# Largest relative errors of a product of normally distributed weights.
WEIGHTS = {2: 0.5, 4: 0.12, 8: 0.008}
ACTIVATIONS = 0.015
# A value that lies between two levels may be rounded either way; Arm's kernels round activations by row, not by block.
KERNELS = 0.002 if platform.machine() in {"x86_64", "AMD64"} else 0.03


class Rounded:
    """A decoder's file, its rounded matrices in float64 under the checkpoint's names."""

    def __init__(self, bundle: Path, tensors: dict[str, Any]) -> None:
        self.path = bundle / names.DECODER
        model = onnx.load(str(self.path))
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        for node in self.products:
            views = parts(node, self.tensors)
            for view, rows in zip(views, np.split(self.matrix(node), np.cumsum([len(v) for v in views])), strict=False):
                view[:] = rows

    def matrix(self, node: Any) -> Any:
        """What a node's packed weights and scales stand for: [N, K]."""
        bits = attributes(node)["bits"]
        packed, scales = self.value(node.input[1]), self.value(node.input[2])
        shifts = np.arange(0, 8, bits)
        levels = (packed[..., None] >> shifts) & (2**bits - 1)
        blocks = levels.reshape(*packed.shape[:2], -1).astype(np.float64) - 2 ** (bits - 1)
        return (blocks * scales.reshape(*packed.shape[:2], 1)).reshape(len(packed), -1)

    def value(self, name: str) -> Any:
        """A constant, or what a few nodes make of constants."""
        if name in self.constants:
            return self.constants[name]
        node = self.makers[name]
        values = [self.value(source) for source in node.input]
        return values[0].astype(np.float32) if node.op_type == "Cast" else values[0] * values[1]

    def change(self, *, level: int = 4, watch: bool = False) -> list[str]:
        """Rewrites the file: another accuracy level, or inputs and outputs of all products as outputs of the graph."""
        model = onnx.load(str(self.path), load_external_data=False)
        watched: dict[str, None] = {}
        for node in model.graph.node:
            if node.op_type == "MatMulNBits":
                watched |= dict.fromkeys((node.input[0], node.output[0]))
                next(a for a in node.attribute if a.name == "accuracy_level").i = level
        taken = {value.name for value in [*model.graph.input, *model.graph.output]}
        extra = [name for name in watched if name not in taken] if watch else []
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
        self.path.write_bytes(model.SerializeToString())
        return extra


def parts(node: Any, tensors: dict[str, Any]) -> list[Any]:
    """The rows of the checkpoint that a product multiplies by: views [some, K], to be put one below the other."""
    views = []
    for part in node.input[1].rsplit(".q", 1)[0].split("+"):
        name, _, cut = part.partition("[")
        flat = tensors[name].reshape(-1, tensors[name].shape[-1])
        first, end = (int(number) for number in cut[:-1].split(":")) if cut else (0, len(flat))
        views.append(flat[first:end])
    return views


def attributes(node: Any) -> dict[str, Any]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def error(got: Any, exact: Any) -> float:
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def as_int8(x: Any, block: int) -> Any:
    """MatMulNBits at accuracy level 4: each block of activations as 127 levels up and down of its largest."""
    blocks = x.reshape(*x.shape[:-1], -1, block)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    levels = np.rint(blocks * np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0))
    return (levels * scale).reshape(x.shape).astype(np.float64)


def export(folder: Path, model: str, form: Format) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A bundle with exact tables, all matrices of its decoder in one format."""
    changes = {**ORDERED, **MODELS[model]}
    tensors = write_checkpoint(folder / "model", **changes)
    export_checkpoint(folder / "model", folder / "bundle", recipe="fp32")
    text = read_manifest(folder / "bundle").geometry.text
    with Checkpoint(folder / "model") as checkpoint, Graph(folder / "bundle", names.DECODER, lambda _: form) as graph:
        build_decoder(graph, Weights.of_decoder(checkpoint), text)
        graph.save()
    return folder / "bundle", {**CONFIG, **changes}, tensors


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_graph_is_the_forward_of_its_own_weights(tmp_path: Path, model: str, form: str) -> None:
    """With exact activations nothing is left between the graph and numpy on the weights in the bundle's files."""
    bundle, config, tensors = export(tmp_path, model, FORMATS[form])
    manifest, rounded = read_manifest(bundle), Rounded(bundle, tensors)
    runner = Runner(bundle, manifest, chunk=48)
    rounded_logits = forward(rounded.tensors, config, IDS, embeds=runner.embed.read(IDS))
    int8, _ = runner.step(IDS, 48)
    rounded.change(level=0)
    exact, _ = Runner(bundle, manifest, chunk=48).step(IDS, 48)
    assert np.abs(exact - rounded_logits).max() < 1e-4
    weights, activations = error(rounded_logits, forward(tensors, config, IDS)), error(int8, rounded_logits)
    print(f"{form}, {model}, logits: weights {weights:.3f}, activations {activations:.3f}")
    assert 0 < activations < 0.1


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_each_product_errs_as_its_formats_say(tmp_path: Path, model: str, form: str) -> None:
    bundle, _, tensors = export(tmp_path, model, FORMATS[form])
    rounded = Rounded(bundle, tensors)
    extra = rounded.change(watch=True)
    manifest = read_manifest(bundle)
    runner = Runner(bundle, manifest, chunk=48)
    runner.watch = extra
    runner.step(IDS, 48)
    values = {**runner.watched, "inputs_embeds": runner.embed.read(IDS)[None]}
    worst: dict[str, float] = {}
    compared = 0
    for node in rounded.products:
        x, got = values[node.input[0]], values[node.output[0]]
        if not x.size:  # an expert that no token chose
            continue
        matrix, original = rounded.matrix(node), np.concatenate(parts(node, tensors))
        settings = attributes(node)
        exact, kernel = x @ matrix.T, as_int8(x, settings["block_size"]) @ matrix.T
        errors = {
            f"weights of {settings['bits']} bits": (error(exact, x @ original.T), WEIGHTS[settings["bits"]]),
            "activations": (error(kernel, exact), ACTIVATIONS),
            "kernels": (error(got, kernel), KERNELS),
        }
        for what, (value, limit) in errors.items():
            assert value < limit
            worst[what] = max(worst.get(what, 0.0), value)
        compared += 1
    print(f"{form}, {model}, {compared} products:", *(f"{what} {value:.1e}" for what, value in worst.items()))
    assert compared > 5 * manifest.geometry.text.num_layers
