"""Products of many tokens with int8 matrices that have one scale for each channel, in place of MatMulNBits.

MatMulNBits multiplies block by block and scales what each gives. For one token that costs nothing, for then memory is
what it waits for; for many tokens one product of whole rows is 1.5 times as fast as with four bits in blocks of 32, 2.2
times as with eight. Activations are rounded to 8 bits with a scale for each token, as LiteRT's kernels do
(XNNPACK's qd8), where MatMulNBits has one for each block of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.engine.onnx.data_file import DataFile
from edge_runtime.engine.onnx.kv_graph import prune, refill
from edge_runtime.engine.onnx.session import session_options
from edge_runtime.engine.onnx.slices import MATMUL, chain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

LOST = 5e-4
"""Share of a matrix's square that seven bits may lose; four bits in blocks of 32 have lost about 7e-3 of it before."""

MOST = 2e-3
"""Share that eight bits may lose. Of a matrix that loses more, for some columns are far larger than all others, what
they leave is multiplied as well."""

_WEIGHTS = 1 << 20  # dealt with at a time
_MIDDLE = 128  # what an activation of 0 is
_SEVEN, _EIGHT = 63, 127  # levels to either side


def write_channels(model: Any, bundle: Path, path: Path) -> None:
    """Writes a graph with such products in place of every MatMulNBits.

    Args:
        model: `onnx.ModelProto` without its weights, changed in place.
        bundle: The folder where its weights lie.
        path: Where the graph goes; its data file goes beside it.
    """
    with (path.parent / names.data_file(path.name)).open("wb") as file:
        data = DataFile(file, bundle)
        _Writer(model, bundle, data).run()
        for tensor in model.graph.initializer:
            if tensor.external_data and not data.has(tensor):
                data.copy(tensor)
    path.write_bytes(model.SerializeToString())


class _Writer:
    def __init__(self, model: Any, folder: Path, data: DataFile) -> None:
        self._model, self._folder, self._data = model, folder, data
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {output: node for node in model.graph.node for output in node.output}
        self._nodes: list[Any] = []
        self._rounded: dict[str, tuple[str, str]] = {}

    def run(self) -> None:
        graph = self._model.graph
        for node in list(graph.node):
            if node.op_type == MATMUL:
                self._replace(node)
            else:
                self._nodes.append(node)
        refill(graph.node, self._nodes)
        prune(graph)

    def _replace(self, node: Any) -> None:
        one, middle = self._constant("channels.one", np.float32(1)), self._middle()
        activations, steps = self._round(node.input[0])
        output, products = node.output[0], []
        for number, (levels, scales) in enumerate(self._parts(node)):
            name = f"{node.input[1]}.channels.{number}"
            column = middle if levels.dtype == np.uint8 else ""
            inputs = [activations, self._constant(name, levels.T), one, self._constant(f"{name}.scales", scales)]
            products.append(f"{output}/product.{number}")
            self._add("MatMulIntegerToFloat", [*inputs, middle, column], products[-1], "com.microsoft")
        if len(products) > 1:
            self._add("Sum", products, f"{output}/products")
            products = [f"{output}/products"]
        self._add("Mul", [products[0], steps], output)

    def _round(self, value: str) -> tuple[str, str]:
        """Activations in uint8, and the scale of each token; or of all, where a model was trained with that."""
        maker = self._makers.get(value)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return maker.input[0], maker.input[1]
        if value not in self._rounded:
            axis = self._constant("channels.axis", np.array([-1], np.int64))
            self._add("ReduceMax", [value, axis], f"{value}/largest")
            self._add("ReduceMin", [value, axis], f"{value}/least")
            self._add("Neg", [f"{value}/least"], f"{value}/lowest")
            # Of a token that is 0 throughout, too, something must be divided.
            tiny = self._constant("channels.tiny", np.float32(1e-30))
            self._add("Max", [f"{value}/largest", f"{value}/lowest", tiny], f"{value}/reach")
            share = self._constant("channels.share", np.float32(1 / _EIGHT))
            self._add("Mul", [f"{value}/reach", share], f"{value}/step")
            self._add("Div", [value, f"{value}/step"], f"{value}/steps")
            one = self._constant("channels.one", np.float32(1))
            self._add("QuantizeLinear", [f"{value}/steps", one, self._middle()], f"{value}/uint8")
            self._rounded[value] = f"{value}/uint8", f"{value}/step"
        return self._rounded[value]

    def _middle(self) -> str:
        return self._constant("channels.middle", np.array(_MIDDLE, np.uint8))

    def _add(self, kind: str, inputs: list[str], output: str, domain: str = "") -> None:
        from onnx import helper  # noqa: PLC0415

        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain))

    def _constant(self, name: str, values: Any) -> str:
        from onnx import helper, numpy_helper  # noqa: PLC0415

        if name not in self._tensors:
            values = np.asarray(values)
            if values.nbytes < 1024:
                tensor = numpy_helper.from_array(values, name)
                self._model.graph.initializer.append(tensor)
            else:
                kind = helper.np_dtype_to_tensor_dtype(values.dtype)
                self._model.graph.initializer.add(name=name, data_type=kind, dims=values.shape)
                self._data.write(self._model.graph.initializer[-1], values)
            self._tensors[name] = self._model.graph.initializer[-1]
        return name

    def _parts(self, node: Any) -> list[tuple[NDArray[Any], NDArray[np.float32]]]:
        """Matrices [N, K] whose sum a matrix is, as good as always one: levels, scales [N].

        Levels are int8, or uint8 around a middle where only that holds all eight bits.
        """
        sizes = {attribute.name: attribute.i for attribute in node.attribute}
        place = {entry.key: entry.value for entry in self._tensors[node.input[1]].external_data}
        shape = (sizes["N"], sizes["K"] // sizes["block_size"], -1)
        file, length, offset = self._folder / place["location"], int(place["length"]), int(place["offset"])
        packed = np.fromfile(file, np.uint8, length, offset=offset).reshape(shape)
        matrix = Blocks(packed, self._steps(node.input[2]).reshape(shape[:2]), sizes["bits"])
        if (matrix.steps == matrix.steps[:, :1]).all():  # it has one already
            levels = np.asfortranarray(matrix.levels(slice(None)))
            return [(levels if matrix.bits < 8 else _all_eight(levels), matrix.steps[:, 0].copy())]
        if saturates() and matrix.bits < 8:
            levels, scales, lost = round_channels(matrix.rows, matrix.shape, _SEVEN)
            if lost <= LOST:
                return [(levels, scales)]
        levels, scales, lost = round_channels(matrix.rows, matrix.shape, _EIGHT)
        more = []
        if lost > MOST:
            rest = round_channels(lambda at: matrix.rows(at) - levels[at] * scales[at, None], matrix.shape, _SEVEN)
            more.append((rest[0], rest[1]))
        return [(_all_eight(levels), scales), *more]

    def _steps(self, name: str) -> NDArray[np.float32]:
        """The scales of blocks, which the graph may work out of smaller numbers."""
        import onnxruntime as ort  # noqa: PLC0415
        from onnx import helper  # noqa: PLC0415

        nodes = chain(name, self._makers) or [helper.make_node("Identity", [name], [f"{name}/same"])]
        used = {value for node in nodes for value in node.input}
        outputs = [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)]
        tensors = [self._tensors[value] for value in sorted(used) if value in self._tensors]
        graph = helper.make_graph(nodes, "steps", [], outputs, tensors)
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        options = session_options(1)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._folder))
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        steps: NDArray[np.float32] = session.run(None, {})[0]
        return steps


@dataclass(frozen=True)
class Blocks:
    """A matrix of MatMulNBits.

    Attributes:
        packed: uint8 `[N, K/block, block*bits/8]`, the first weight of a byte in its lowest bits.
        steps: float32 `[N, K/block]`, the scales of its blocks.
        bits: Of its weights: 2, 4 or 8.
    """

    packed: NDArray[np.uint8]
    steps: NDArray[np.float32]
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, blocks, size = self.packed.shape
        return rows, blocks * size * 8 // self.bits

    def levels(self, at: slice) -> NDArray[np.int8]:
        """Some of its rows in steps of their blocks, `[n, K]`."""
        packed, each = self.packed[at], 8 // self.bits
        levels = np.empty((*packed.shape[:2], packed.shape[2] * each), np.uint8)
        for place in range(each):
            levels[..., place::each] = (packed >> (self.bits * place)) & ((1 << self.bits) - 1)
        levels -= np.uint8(1 << (self.bits - 1))
        return levels.view(np.int8).reshape(len(packed), -1)

    def rows(self, at: slice) -> NDArray[np.float32]:
        """Some of its rows, `[n, K]`."""
        levels = self.levels(at)
        weights = levels.reshape(len(levels), self.steps.shape[1], -1) * self.steps[at][..., None]
        return weights.reshape(len(levels), -1)


def _all_eight(levels: NDArray[np.int8]) -> NDArray[Any]:
    """Levels of eight bits in the form that this machine multiplies without overflow; their memory is used."""
    if not saturates():
        return levels
    whole = levels.view(np.uint8)
    whole ^= _MIDDLE
    return whole


def round_channels(
    rows: Callable[[slice], NDArray[np.float32]], shape: tuple[int, int], top: int
) -> tuple[NDArray[np.int8], NDArray[np.float32], float]:
    """Rounds a matrix with one scale for each channel.

    Args:
        rows: Gives some of its rows, float32 `[n, K]`.
        shape: (N, K).
        top: The largest level.

    Returns:
        Levels, int8 `[N, K]`, columns first in memory; scales, float32 `[N]`; the share of its square that was lost.
    """
    levels, scales = np.empty(shape[::-1], np.int8).T, np.empty(shape[0], np.float32)
    lost = whole = 0.0
    count = max(1, _WEIGHTS // shape[1])
    for start in range(0, shape[0], count):
        at = slice(start, start + count)
        weights = rows(at)
        scale = np.maximum(np.abs(weights).max(1), np.float32(1e-30)) / np.float32(top)
        scales[at] = scale
        whole += float(np.vdot(weights, weights))
        rounded = np.rint(weights / scale[:, None])
        levels[at] = rounded
        rounded *= scale[:, None]
        rounded -= weights
        lost += float(np.vdot(rounded, rounded))
    return levels, scales, lost / whole if whole else 0.0


@cache
def saturates() -> bool:
    """Whether this machine's products of uint8 and int8 go wrong where both are large.

    Those of x86-64 without VNNI add two of them up in 16 bits: weights must have seven bits there, or be uint8 as well.
    """
    import onnxruntime as ort  # noqa: PLC0415
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    width, count = 64, 16
    matrix = np.full((width, count), _EIGHT, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "matrix"], ["y"])
    graph = helper.make_graph(
        [node],
        "saturates",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, width])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.full((count, width), 255, np.uint8)})[0]
    return bool((found != 255 * _EIGHT * width).any())
