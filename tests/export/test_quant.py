from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.export.quant import BLOCK, dequantize, quantize


def test_levels_scales_and_packing_by_hand() -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, :4] = [8.0, -8.0, 4.0, -3.4]
    packed, scales = quantize(weight, 4)
    # The first element of largest magnitude, 8, becomes level -8: scale -1; so -8 would be +8 and is cut to 7.
    assert scales.tolist() == [[-1.0]]
    assert packed.shape == (1, 1, 16)
    assert packed[0, 0, 0] == 0 | (15 << 4)
    assert packed[0, 0, 1] == 4 | (11 << 4)
    assert dequantize(packed, scales, 4)[0, :4].tolist() == [8.0, -7.0, 4.0, -3.0]


def test_zeros_stay_zeros() -> None:
    packed, scales = quantize(np.zeros((2, 64), np.float32), 4)
    assert not scales.any()
    assert (packed == 0x88).all()
    assert not dequantize(packed, scales, 4).any()


@pytest.mark.parametrize("bits", [4, 8])
def test_error_is_within_half_a_step(bits: int) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 96)).astype(np.float32)
    packed, scales = quantize(weight, bits)
    step = np.repeat(np.abs(scales), BLOCK, 1)
    error = np.abs(dequantize(packed, scales, bits) - weight)
    # The lowest level has no positive twin, so a value as large as the extreme may lose a whole step.
    assert (error <= step * 1.0001).all()
    assert (error > step * 0.5001).mean() < 0.01
    extremes = np.abs(weight).reshape(40, 3, BLOCK).argmax(-1)
    exact = np.take_along_axis(error.reshape(40, 3, BLOCK), extremes[..., None], -1)
    assert exact.max() < 1e-6


@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_unpacks_the_same_weights(bits: int) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((24, 64)).astype(np.float32)
    packed, scales = quantize(weight, bits)
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=64, N=24, bits=bits, block_size=32
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", 24])],
        [numpy_helper.from_array(packed, "b"), numpy_helper.from_array(scales, "s")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    x = rng.standard_normal((5, 64)).astype(np.float32)
    (got,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert np.abs(got - x @ dequantize(packed, scales, bits).T).max() < 1e-4
