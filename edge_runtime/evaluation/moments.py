"""What a decoder's matrices multiply, summed up over prompts: what calibrated rounding needs to know.

For every matrix the second moments of its inputs are summed, x x^T over all tokens, within runs of columns
(`edge_runtime.export.calibrated`).
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest, seal
from edge_runtime.evaluation.kld import BundleSource
from edge_runtime.export.calibrated import run_width

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.evaluation.exchanges import Exchange

_MATRIX = re.compile(r"(?P<name>.+)\.(T|q[248])$")  # how a graph calls a matrix, in float32 or rounded


def collect(
    bundle: Path,
    exchanges: Sequence[Exchange],
    out: Path,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Has a bundle read prompts and their expected answers and writes the moments to `out`.

    Args:
        bundle: Of the checkpoint that is to be rounded, however it is rounded itself. Its graph is given further
            outputs and stays so: make it for this.
        exchanges: From `read_exchanges`; those of a kind that the bundle does not take are left out.
        out: The file to make.
        threads: To compute with.
        progress: Called with (done, total) before the first and after each.

    Returns:
        How many prompts were read.

    Raises:
        EdgeRuntimeError: a prompt cannot be run.
    """
    inputs = _expose(bundle)
    sums: dict[str, NDArray[np.float32]] = {}

    def add(values: dict[str, NDArray[np.float32]]) -> None:
        for name, rows in values.items():
            run = run_width(rows.shape[1])
            columns = np.ascontiguousarray(rows.reshape(len(rows), -1, run).transpose(1, 0, 2))
            found = columns.transpose(0, 2, 1) @ columns
            if name in sums:
                sums[name] += found
            else:
                sums[name] = found

    with BundleSource(bundle, threads=threads) as source:
        taken = [exchange for exchange in exchanges if exchange.modality in source.modalities]
        source.watch(sorted(set(inputs.values())), add)
        for done, exchange in enumerate(taken):
            if progress:
                progress(done, len(taken))
            source.logits(exchange)
        if progress:
            progress(len(taken), len(taken))
    with out.open("wb") as file:
        np.savez(file, **{matrix: sums[name] for matrix, name in inputs.items()})  # type: ignore[arg-type]
    return len(taken)


def _expose(bundle: Path) -> dict[str, str]:
    """Gives the decoder's graph an output for every input of a matrix: their names by the matrix's.

    Only inputs whose columns can be cut into runs, which are those of matrices that can be rounded.
    """
    path = bundle / names.DECODER
    model = onnx.load(str(path), load_external_data=False)
    widths = {tensor.name: _width(tensor) for tensor in model.graph.initializer}
    taken: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for node in list(model.graph.node):
        found = _MATRIX.match(node.input[1]) if node.op_type in {"MatMul", "MatMulNBits"} else None
        if not found or widths.get(node.input[1], 1) % 32:
            continue
        value = node.input[0]
        if value not in taken:
            # A copy, for an input or output of the graph may not be another output.
            taken[value] = f"{value}/watched"
            model.graph.node.append(helper.make_node("Identity", [value], [taken[value]]))
            model.graph.output.append(helper.make_tensor_value_info(taken[value], onnx.TensorProto.FLOAT, None))
        inputs[found["name"]] = taken[value]
    temporary = path.with_suffix(".watched")
    temporary.write_bytes(model.SerializeToString())
    os.replace(temporary, path)  # noqa: PTH105 - the old file may be a link that others use
    seal(bundle, dataclasses.replace(read_manifest(bundle), files={}))
    return inputs


def _width(tensor: onnx.TensorProto) -> int:
    """K of a matrix: the first of [K, N], or of what a rounded one has [N, K/block, block*bits/8]."""
    if len(tensor.dims) == 2:
        return int(tensor.dims[0])
    return 32 * int(tensor.dims[1]) if len(tensor.dims) == 3 else 1
