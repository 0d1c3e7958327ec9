"""Which of ONNX Runtime's kernels multiply four-bit weights on ARM64: those of int8 where the processor has them."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(platform.machine() != "aarch64", reason="for ARM64")

COLUMNS, OUTPUTS, BLOCK = 256, 128, 32
ACCURACY_INT8 = 4
AT_HWCAP, ASIMDDP = 16, 1 << 20
"""getauxval(3), and the kernel's asm/hwcap.h: the dot products of int8."""


def _has_dot_products() -> bool:
    libc = ctypes.CDLL(None)
    libc.getauxval.restype, libc.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return bool(libc.getauxval(AT_HWCAP) & ASIMDDP)


def _error(rows: int) -> float:
    """How far a product of `rows` rows with four-bit weights is from the exact one, relative to its largest value."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    quants = random.integers(0, 16, (OUTPUTS, COLUMNS // BLOCK, BLOCK)).astype(np.uint8)
    scales = random.uniform(0.05, 0.2, (OUTPUTS, COLUMNS // BLOCK)).astype(np.float32)
    sizes: dict[str, Any] = {
        "K": COLUMNS,
        "N": OUTPUTS,
        "bits": 4,
        "block_size": BLOCK,
        "accuracy_level": ACCURACY_INT8,
    }
    node = helper.make_node("MatMulNBits", ["x", "quants", "scales"], ["y"], domain="com.microsoft", **sizes)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, OUTPUTS])],
        [
            numpy_helper.from_array(quants[..., 0::2] | (quants[..., 1::2] << 4), "quants"),
            numpy_helper.from_array(scales, "scales"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = random.standard_normal((rows, COLUMNS)).astype(np.float32)
    weights = ((quants.astype(np.float32) - 8) * scales[..., None]).reshape(OUTPUTS, COLUMNS)
    exact = x @ weights.T
    return float(np.abs(session.run(None, {"x": x})[0] - exact).max() / np.abs(exact).max())


@pytest.mark.parametrize("rows", [1, 4])
def test_four_bit_weights_are_multiplied_in_int8_where_the_processor_can(rows: int) -> None:
    error = _error(rows)
    if _has_dot_products():
        assert 1e-3 < error < 0.03  # the activations were rounded to int8
    else:
        assert error < 1e-5
