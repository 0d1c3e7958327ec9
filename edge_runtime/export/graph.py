"""Builds one ONNX graph; its weights go straight to a data file beside it, a few rows at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import onnx
from onnx import TensorProto, helper

from edge_runtime.bundle import names
from edge_runtime.export.matrix import chunks
from edge_runtime.export.quant import BLOCK, dequantize, quantize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.export.matrix import Matrix

MS = "com.microsoft"
OPSET = 21
IR_VERSION = 10

FLOAT, INT32, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL

_INLINE = 1024  # bytes below which a constant stays in the .onnx file
_PAGE = 4096  # ONNX Runtime maps external data only at page boundaries
_ACCURACY_INT8 = 4  # MatMulNBits rounds activations to int8 and multiplies integers


@dataclass
class WeightError:
    """What rounding did to one matrix."""

    name: str
    bits: int
    relative: float
    """Frobenius norm of the error over that of the matrix."""


@dataclass
class Graph:
    """A graph under construction.

    `folder`/`file` and its data file are written by `save`; leaving the context closes the latter. Methods return the
    names of the values they add.
    """

    folder: Path
    file: str
    bits: int
    """Weights of matrices: 4, 8, or 32 to keep them in float32."""
    tick: Callable[[int], None] | None = None
    """Told how many weights were written since it was last called."""
    errors: list[WeightError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0
        self._data_path = self.folder / names.data_file(self.file)
        self._data = self._data_path.open("w+b")
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    # Values -------------------------------------------------------------------------------------------------------

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Declares a graph input; strings are free dimensions."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, value: str, name: str, kind: int, shape: Sequence[int | str]) -> None:
        """Makes `value` the graph output `name` (no node is added where they are the same)."""
        if value != name:
            self._nodes.append(helper.make_node("Identity", [value], [name], name=f"output/{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))

    def const(self, array: NDArray[Any], name: str | None = None) -> str:
        """A constant; equal names, and equal small unnamed arrays, are stored once."""
        array = np.ascontiguousarray(array) if array.ndim else array
        if name is None:
            digest = array.tobytes().hex() if array.nbytes <= 64 else str(len(self._initializers))
            name = f"const/{array.dtype}/{'x'.join(map(str, array.shape))}/{digest}"
        if name in self._initializers:
            return name
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        if array.nbytes < _INLINE:
            tensor = helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)
        else:
            offset = self._reserve(array.nbytes)
            self._write(offset, array)
            tensor = self._external(name, kind, array.shape, offset, array.nbytes)
        self._initializers[name] = tensor
        return name

    def ints(self, *values: int) -> str:
        """An int64 vector constant."""
        return self.const(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A float32 scalar constant."""
        return self.const(np.array(value, np.float32))

    # Nodes --------------------------------------------------------------------------------------------------------

    def op(
        self, kind: str, inputs: Sequence[str], *, domain: str = "", out: str | None = None, **attributes: Any
    ) -> str:
        """Adds a node with one output."""
        return self.op_n(kind, inputs, [out or self.fresh(kind)], domain=domain, **attributes)[0]

    def op_n(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str] | int, *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Adds a node with several outputs: a number of them, or their names ("" for one that is not wanted)."""
        if isinstance(outputs, int):
            base = self.fresh(kind)
            outputs = [f"{base}.{i}" for i in range(outputs)]
        label = next(name for name in outputs if name)
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=label, domain=domain, **attributes))
        return list(outputs)

    def add(self, a: str, b: str) -> str:
        """Sum."""
        return self.op("Add", [a, b])

    def mul(self, a: str, b: str) -> str:
        """Product, elementwise."""
        return self.op("Mul", [a, b])

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape; 0 keeps a dimension, -1 is worked out."""
        return self.op("Reshape", [x, self.ints(*shape)])

    def transpose(self, x: str, *order: int) -> str:
        """Transpose."""
        return self.op("Transpose", [x], perm=list(order))

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        """Cuts the last axis into parts of the given sizes."""
        return [x] if len(sizes) == 1 else self.op_n("Split", [x, self.ints(*sizes)], len(sizes), axis=-1)

    def slice(self, x: str, start: str, stop: str, axis: int) -> str:
        """x[start:stop] along one axis; start and stop are int64 [1] values."""
        return self.op("Slice", [x, start, stop, self.ints(axis)])

    def last(self, x: str, count: str, axis: int = 1) -> str:
        """The last `count` (int64 [1], at least 1) entries along an axis."""
        return self.slice(x, self.op("Neg", [count]), self.ints(np.iinfo(np.int64).max), axis)

    def rms_norm(self, x: str, weight: str, eps: float) -> str:
        """RMSNorm over the last axis: x * (mean(x^2) + eps)^-0.5 * weight."""
        return self.op("SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=eps, stash_type=1)

    def gelu(self, x: str) -> str:
        """GELU in its tanh form."""
        return self.op("FastGelu", [x], domain=MS)

    def clip(self, x: str, low: float, high: float) -> str:
        """Clamps to [low, high]; an infinite bound is none."""
        if math.isinf(low) and math.isinf(high):
            return x
        return self.op(
            "Clip", [x, "" if math.isinf(low) else self.scalar(low), "" if math.isinf(high) else self.scalar(high)]
        )

    def linear(self, x: str, matrix: Matrix, *, bits: int | None = None) -> str:
        """Multiplies x [..., K] by the transpose of `matrix` [N, K], rounded to `bits` (default: the graph's).

        K that is no multiple of the quantiser's block is multiplied in float32.
        """
        bits = self.bits if bits is None else bits
        count, width = matrix.shape
        if bits == 32 or width % BLOCK:
            return self.op("MatMul", [x, self._dense(matrix)])
        packed, scales = self._rounded(matrix, bits)
        return self.op(
            "MatMulNBits",
            [x, packed, scales],
            domain=MS,
            K=width,
            N=count,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=_ACCURACY_INT8,
        )

    def gather_groups(self, indices: str, matrix: Matrix, groups: int) -> str:
        """Some of the `groups` equal runs of rows of `matrix`, in float32: [len(indices), N / groups, K]."""
        if self.bits == 32 or matrix.shape[1] % BLOCK:
            return self.op("Gather", [self._plain(matrix, groups), indices], axis=0)
        packed, scales = self._rounded(matrix, self.bits, groups)
        return self.op(
            "GatherBlockQuantized",
            [packed, indices, scales],
            domain=MS,
            gather_axis=0,
            quantize_axis=2,
            block_size=BLOCK,
            bits=self.bits,
        )

    # Files --------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the graph and closes its data file."""
        self._data.truncate(max(self._end, 1))
        self._data.close()
        graph = helper.make_graph(
            self._nodes, self.file.removesuffix(".onnx"), self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="edge-runtime", ir_version=IR_VERSION)
        (self.folder / self.file).write_bytes(model.SerializeToString())

    def fresh(self, kind: str) -> str:
        """A name that no other value has."""
        self._count += 1
        return f"{kind}_{self._count}"

    def _reserve(self, size: int) -> int:
        offset = self._end + -self._end % (_PAGE if size >= _PAGE else 64)
        self._end = offset + size
        return offset

    def _write(self, offset: int, array: NDArray[Any]) -> None:
        self._data.seek(offset)
        self._data.write(np.ascontiguousarray(array).data.cast("B"))

    def _external(self, name: str, kind: int, shape: Sequence[int], offset: int, size: int) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._data_path.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _dense(self, matrix: Matrix) -> str:
        """The transposed matrix [K, N] in float32."""
        name = f"{matrix.name}.T"
        if name in self._initializers:
            return name
        count, width = matrix.shape
        size = 4 * count * width
        offset = self._reserve(size)
        for start, rows in chunks(matrix, self.tick):
            for k, column in enumerate(np.ascontiguousarray(rows.T)):
                self._write(offset + 4 * (k * count + start), column)
        self._initializers[name] = self._external(name, FLOAT, (width, count), offset, size)
        return name

    def _plain(self, matrix: Matrix, groups: int) -> str:
        """The matrix as [groups, N / groups, K] in float32."""
        count, width = matrix.shape
        size = 4 * count * width
        offset = self._reserve(size)
        for start, rows in chunks(matrix, self.tick):
            self._write(offset + 4 * start * width, rows)
        name = f"{matrix.name}.groups"
        self._initializers[name] = self._external(name, FLOAT, (groups, count // groups, width), offset, size)
        return name

    def _rounded(self, matrix: Matrix, bits: int, groups: int = 0) -> tuple[str, str]:
        """Packed weights [N, K/32, 32*bits/8] uint8 and scales [N, K/32] float32.

        With `groups`: [groups, N / groups, K*bits/8] and [groups, N / groups, K/32].
        """
        packed_name, scales_name = f"{matrix.name}.q{bits}", f"{matrix.name}.scales{bits}"
        if packed_name in self._initializers:
            return packed_name, scales_name
        count, width = matrix.shape
        blocks, block_bytes = width // BLOCK, BLOCK * bits // 8
        packed_at = self._reserve(count * blocks * block_bytes)
        scales_at = self._reserve(4 * count * blocks)
        error = norm = 0.0
        for start, rows in chunks(matrix, self.tick):
            packed, scales = quantize(rows, bits)
            self._write(packed_at + start * blocks * block_bytes, packed)
            self._write(scales_at + start * blocks * 4, scales)
            error += float(np.square(dequantize(packed, scales, bits) - rows).sum(dtype=np.float64))
            norm += float(np.square(rows).sum(dtype=np.float64))
        self.errors.append(WeightError(matrix.name, bits, math.sqrt(error / norm) if norm else 0.0))
        packed_shape: tuple[int, ...] = (count, blocks, block_bytes)
        scales_shape: tuple[int, ...] = (count, blocks)
        if groups:
            packed_shape = (groups, count // groups, blocks * block_bytes)
            scales_shape = (groups, count // groups, blocks)
        uint8, size = TensorProto.UINT8, count * blocks * block_bytes
        self._initializers[packed_name] = self._external(packed_name, uint8, packed_shape, packed_at, size)
        self._initializers[scales_name] = self._external(
            scales_name, FLOAT, scales_shape, scales_at, 4 * count * blocks
        )
        return packed_name, scales_name
