"""Builds one ONNX graph; its weights go straight to a data file beside it, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import onnx
from onnx import TensorProto, helper

from edge_runtime.bundle import names
from edge_runtime.export.calibrated import BITS, Moments
from edge_runtime.export.data import DataFile, Extent, Places, WeightError
from edge_runtime.export.matrix import Matrix, Stacked
from edge_runtime.export.parallel import Pace
from edge_runtime.export.quant import Format

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.bundle.checksums import Measured

MS = "com.microsoft"
OPSET = 21
IR_VERSION = 10

FLOAT, INT32, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL

_INLINE = 1024  # bytes below which a constant stays in the .onnx file
_NORMS = {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
_ACCURACY_INT8 = 4  # MatMulNBits rounds activations to int8 and multiplies integers

Plan = Callable[[Matrix], Format]
"""How each matrix is to be stored."""


@dataclass
class Graph:
    """A graph under construction.

    `folder`/`file` and its data file are written by `save`; leaving the context closes the latter. Methods return the
    names of the values they add.
    """

    folder: Path
    file: str
    plan: Plan
    tick: Callable[[int], None] | None = None
    """Told how many weights were written since it was last called."""
    pace: Pace = field(default_factory=Pace)
    data: DataFile | None = None
    """Where weights go instead of to a file beside the graph."""
    moments: Moments | None = None
    """What is known of the inputs of matrices, for calibrated rounding."""
    errors: list[WeightError] = field(default_factory=list)
    places: dict[str, Places] = field(default_factory=dict)
    """Where the rounded matrices lie in the data file."""

    def __post_init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0
        self._data = self.data or DataFile(self.folder / names.data_file(self.file), self.pace, self.tick)
        self._rounded: dict[str, tuple[str, str]] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._importance: dict[str, NDArray[np.float32]] = {}
        self._on_grid: dict[tuple[str, float], str] = {}

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
            tensor = self._external(name, self._data.put(array))
        self._initializers[name] = tensor
        if array.ndim == 1 and array.dtype == np.float32:
            self._vectors[name] = array
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
        if kind in _NORMS and (weight := self._vectors.get(inputs[-1])) is not None:
            # What a norm gives is about as large as its weight: that is how much a column's rounding error counts.
            self._importance[outputs[0]] = np.square(weight)
        return list(outputs)

    def either(
        self,
        condition: str,
        then: Callable[[], Sequence[str]],
        otherwise: Callable[[], Sequence[str]],
        outputs: Sequence[str],
    ) -> list[str]:
        """Values by the names of `outputs`: what the nodes of `then` give where `condition` holds, else the others'.

        Both add nodes that may use all values there are, and return as many of their own, float32.
        """
        label, around, branches = self.fresh("either"), self._nodes, []
        for name, build in (("then", then), ("otherwise", otherwise)):
            self._nodes = []
            values = [helper.make_tensor_value_info(value, FLOAT, None) for value in build()]
            branches.append(helper.make_graph(self._nodes, f"{label}/{name}", [], values))
        self._nodes = around
        then_branch, else_branch = branches
        node = helper.make_node(
            "If", [condition], outputs, name=label, then_branch=then_branch, else_branch=else_branch
        )
        self._nodes.append(node)
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
        """The last `count` (int64 [1], at least 1) entries along an axis that is not the last."""
        part = self.slice(x, self.op("Neg", [count]), self.ints(np.iinfo(np.int64).max), axis)
        if x in self._importance:
            self._importance[part] = self._importance[x]
        return part

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

    def linear(self, x: str, matrix: Matrix, form: Format | None = None, bias: str = "") -> str:
        """Multiplies x [..., K] by the transpose of `matrix` [N, K], stored as the plan (or `form`) says.

        K that is no multiple of 32 is multiplied in float32.
        """
        product = self._product(self.on_grid(x, matrix.rounding.input), matrix, form)
        return self.on_grid(self.add(product, bias) if bias else product, matrix.rounding.output)

    def linears(self, x: str, matrices: Sequence[Matrix]) -> list[str]:
        """The same with several; those that take x alike are one multiplication."""
        products: dict[int, str] = {}
        for step in dict.fromkeys(matrix.rounding.input for matrix in matrices):
            alike = [index for index, matrix in enumerate(matrices) if matrix.rounding.input == step]
            parts = [matrices[index] for index in alike]
            whole = self._product(self.on_grid(x, step), Stacked(parts) if len(parts) > 1 else parts[0])
            products |= zip(alike, self.split(whole, [part.shape[0] for part in parts]), strict=True)
        return [self.on_grid(products[index], matrix.rounding.output) for index, matrix in enumerate(matrices)]

    def on_grid(self, x: str, step: float) -> str:
        """The nearest of the multiples of `step` from -128 to 127; x itself if step is 0."""
        if not step:
            return x
        if (x, step) not in self._on_grid:
            scale, zero = self.scalar(step), self.const(np.array(128, np.uint8))
            levels = self.op("QuantizeLinear", [x, scale, zero])
            self._on_grid[x, step] = value = self.op("DequantizeLinear", [levels, scale, zero])
            if x in self._importance:
                self._importance[value] = self._importance[x]
        return self._on_grid[x, step]

    def _product(self, x: str, matrix: Matrix, form: Format | None = None) -> str:
        count, width = matrix.shape
        form = (form or self.plan(matrix)).fitting(width)
        if form.bits == 32:
            return self.op("MatMul", [x, self._dense(matrix)])
        packed, scales = self._quantized(matrix, form, importance=self._importance.get(x))
        return self.op(
            "MatMulNBits",
            [x, packed, scales],
            domain=MS,
            K=width,
            N=count,
            bits=form.bits,
            block_size=form.block,
            accuracy_level=_ACCURACY_INT8,
        )

    def gather_groups(self, indices: str, matrix: Matrix, groups: int) -> str:
        """Some of the `groups` equal runs of rows of `matrix`, in float32: [len(indices), N / groups, K]."""
        count, width = matrix.shape
        form = self.plan(matrix).fitting(width)
        if form.bits == 32:
            name = f"{matrix.name}.groups"
            extent = replace(self._data.plain(matrix), shape=(groups, count // groups, width))
            self._initializers[name] = self._external(name, extent)
            return self.op("Gather", [name, indices], axis=0)
        packed, scales = self._quantized(matrix, form, groups)
        return self.op(
            "GatherBlockQuantized",
            [packed, indices, scales],
            domain=MS,
            gather_axis=0,
            quantize_axis=2,
            block_size=form.block,
            bits=form.bits,
        )

    # Files --------------------------------------------------------------------------------------------------------

    def save(self) -> Measured:
        """Writes the graph and closes its data file; the result is what the latter is."""
        measured = self._data.finish()
        graph = helper.make_graph(
            self._nodes, self.file.removesuffix(".onnx"), self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="edge-runtime", ir_version=IR_VERSION)
        (self.folder / self.file).write_bytes(model.SerializeToString())
        return measured

    def fresh(self, kind: str) -> str:
        """A name that no other value has."""
        self._count += 1
        return f"{kind}_{self._count}"

    def _external(self, name: str, extent: Extent) -> onnx.TensorProto:
        kind = helper.np_dtype_to_tensor_dtype(extent.dtype)
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=extent.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._data.name), ("offset", extent.offset), ("length", extent.size)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _dense(self, matrix: Matrix) -> str:
        """The transposed matrix [K, N] in float32."""
        name = f"{matrix.name}.T"
        if name not in self._initializers:
            self._initializers[name] = self._external(name, self._data.transposed(matrix))
        return name

    def _quantized(
        self, matrix: Matrix, form: Format, groups: int = 0, importance: NDArray[np.float32] | None = None
    ) -> tuple[str, str]:
        """Packed weights uint8 [N, K/block, block*bits/8] and scales float32 [N, K/block].

        With `groups`: [groups, N / groups, K*bits/8] and [groups, N / groups, K/block].
        """
        base = f"{matrix.name}.q{form.bits}"
        if base in self._rounded:
            return self._rounded[base]
        count, width = matrix.shape
        moments = self.moments.of(matrix.name, width) if self.moments and form.bits == BITS else None
        places, error = self._data.rounded(matrix, form, importance, moments)
        self.places[matrix.name] = places
        self.errors.append(error)
        packed, scales, factors = places.packed, places.scales, places.factors
        if groups:
            rows = (groups, count // groups)
            packed = replace(packed, shape=(*rows, width * form.bits // 8))
            scales = replace(scales, shape=(*rows, width // form.block))
            factors = factors and replace(factors, shape=(*rows, 1))
        self._initializers[base] = self._external(base, packed)
        self._rounded[base] = base, self._steps(f"{matrix.name}.scales{form.bits}", scales, factors)
        return self._rounded[base]

    def _steps(self, name: str, scales: Extent, factors: Extent | None) -> str:
        """The scales in float32. ONNX Runtime works them out when it loads the graph, and keeps only the result."""
        self._initializers[name] = self._external(name, scales)
        if scales.dtype == np.float32:
            return name
        value = self.op("Cast", [name], out=f"{name}/f32", to=FLOAT)
        if factors is None:
            return value
        self._initializers[f"{name}/factors"] = self._external(f"{name}/factors", factors)
        return self.op("Mul", [value, f"{name}/factors"], out=f"{name}/steps")
