"""Reads back what an exported graph holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import numpy_helper

from edge_runtime.export.quant import Format, Rounded, dequantize

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


def rounded_matrices(graph: Path) -> dict[str, tuple[Format, NDArray[np.float32]]]:
    """Format and values of every matrix that the graph multiplies by MatMulNBits, by name."""
    model = onnx.load(str(graph))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sources = {node.output[0]: list(node.input) for node in model.graph.node if node.op_type in {"Cast", "Mul"}}
    found = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        _, packed, scales = node.input
        given = {attribute.name: attribute.i for attribute in node.attribute}
        factors = None
        kind = "f32"
        if scales in sources:
            first = sources[scales]
            kind = "i8" if len(first) > 1 else "f16"
            factors = arrays[first[1]] if len(first) > 1 else None
            scales = sources[first[0]][0] if len(first) > 1 else first[0]
        form = Format(given["bits"], given["block_size"], kind)  # type: ignore[arg-type]
        rounded = Rounded(form, arrays[packed], arrays[scales], factors)
        found[packed.removesuffix(f".q{form.bits}")] = form, dequantize(rounded)
    return found
