from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from edge_runtime.bundle import names
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import export_checkpoint
from edge_runtime.export.graph import Graph
from edge_runtime.export.moe import add_experts
from edge_runtime.export.quant import FP32, Format
from edge_runtime.export.safetensors import Checkpoint
from edge_runtime.export.weights import Weights
from edge_runtime.gemma.geometry import Geometry
from tests.export.decoding import session
from tests.export.reference import experts
from tests.export.tiny import CONFIG, decoder_tensors, write_checkpoint, write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

MOE: dict[str, Any] = {"enable_moe_block": True, "num_experts": 9, "top_k_experts": 3, "moe_intermediate_size": 32}
PREFIX = "model.layers.2."


def block(folder: Path, form: Format = FP32) -> tuple[Any, dict[str, Any]]:
    """A session of one layer's experts alone, and the checkpoint's tensors."""
    tensors = write_checkpoint(folder / "model", **MOE)
    text = Geometry.from_config({**CONFIG, **MOE}).text
    with Checkpoint(folder / "model") as checkpoint, Graph(folder, names.DECODER, lambda _: form) as graph:
        x, residual = (graph.input(name, 1, [1, "tokens", text.hidden_size]) for name in ("x", "residual"))
        out = add_experts(graph, Weights(checkpoint, PREFIX), text, x, residual)
        graph.output(out, "out", 1, [1, "tokens", text.hidden_size])
        graph.save()
    return session(folder / names.DECODER), tensors


@pytest.mark.parametrize("tokens", [1, 2, 50])
def test_experts_equal_those_of_numpy(tmp_path: Path, tokens: int):
    graph, tensors = block(tmp_path)
    rng = np.random.default_rng(tokens)
    x, residual = rng.standard_normal((2, 1, tokens, 64)).astype(np.float32)
    text = Geometry.from_config({**CONFIG, **MOE}).text
    expected = experts({name: t.astype(np.float64) for name, t in tensors.items()}, PREFIX, residual[0], x[0], text)
    (got,) = graph.run(None, {"x": x, "residual": residual})
    assert np.abs(got[0] - expected).max() < 1e-5


def test_all_tokens_on_one_side(tmp_path: Path):
    """Every token takes the same three experts; the others multiply no rows at all, rounded or not."""
    rng = np.random.default_rng(0)
    residual = np.repeat(rng.standard_normal((1, 1, 64)).astype(np.float32), 40, 1)
    x = rng.standard_normal((1, 40, 64)).astype(np.float32)
    outputs = []
    for form in (FP32, Format(8)):
        (tmp_path / str(form.bits)).mkdir()
        graph, _ = block(tmp_path / str(form.bits), form)
        outputs.append(graph.run(None, {"x": x, "residual": residual})[0])
    assert np.linalg.norm(outputs[1] - outputs[0]) < 0.02 * np.linalg.norm(outputs[0])


def test_the_router_is_never_rounded(tmp_path: Path):
    block(tmp_path, Format(4))
    model = onnx.load(str(tmp_path / names.DECODER), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node if "MatMul" in node.op_type]
    assert kinds.count("MatMulNBits") == 2 * 9
    assert kinds.count("MatMul") == 2  # the router, and the weighted sum


def test_experts_trained_for_four_bits_keep_their_levels(tmp_path: Path):
    """Three-dimensional tensors whose values are products of a level and a float16 scale."""
    tensors = write_checkpoint(tmp_path / "model", **MOE)
    rng = np.random.default_rng(3)
    for name in tensors:
        if ".experts." in name:
            shape = tensors[name].shape
            levels = rng.integers(-8, 8, (*shape[:-1], shape[-1] // 32, 32))
            scales = rng.uniform(0.01, 0.03, (*levels.shape[:-1], 1)).astype(np.float16)
            tensors[name] = (levels * scales.astype(np.float32)).reshape(shape).astype(np.float32)
    write_safetensors(tmp_path / "model" / "model.safetensors", tensors)
    report = export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="int4")
    errors = {error.name: error.relative for error in report.errors}
    routed = [value for name, value in errors.items() if ".experts." in name]
    assert len(routed) == 6 * 2 * 9
    assert max(routed) < 1e-6
    assert min(value for name, value in errors.items() if "gate_proj" in name and ".experts." not in name) > 0.05


def test_experts_of_another_number_are_refused(tmp_path: Path):
    write_checkpoint(tmp_path / "model", **MOE)
    tensors = decoder_tensors(Geometry.from_config({**CONFIG, **MOE, "num_experts": 8}))
    write_safetensors(tmp_path / "model" / "model.safetensors", tensors)
    with pytest.raises(EdgeRuntimeError, match=r"router|experts"):
        export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="fp32")
