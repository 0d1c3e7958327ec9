"""Cuts large matrices of a graph into runs of rows, whose products are put side by side.

ONNX Runtime packs each matrix once more at every load, to find out which packed one belongs to it: loading takes at
least the memory of the largest. Output heads are many times larger than any other matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.engine.onnx.kv_graph import refill

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SLICE = 1 << 27
"""Weights of a matrix, at most."""
_MOST = 64

MATMUL = "MatMulNBits"
"""Products with matrices of few bits, in blocks."""


def slice_matrices(graph: Any) -> None:
    """Changes an `onnx.GraphProto`, as exported."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes: list[Any] = []
    gone: set[str] = set()
    for node in graph.node:
        count = slices(*_shape(node)) if node.op_type == MATMUL else 1
        made = [*chain(node.input[2], makers), node] if count > 1 else []
        constants = {name: tensors.get(name) for each in made for name in each.input if name not in makers}
        constants.pop(node.input[0], None)
        if not made or not all(tensor and tensor.external_data for tensor in constants.values()):
            nodes.append(node)
            continue
        nodes += _cut(made, count)
        graph.initializer.extend(_rows(tensor, part, count) for part in range(count) for tensor in constants.values())
        gone.update(constants, *(each.output for each in made[:-1]))
    refill(graph.node, [node for node in nodes if node.output[0] not in gone])
    refill(graph.initializer, [tensor for tensor in graph.initializer if tensor.name not in gone])


def chain(value: str, makers: Mapping[str, Any]) -> list[Any]:
    """The nodes that make a value of constants, in order; `makers` are those of all values that nodes give."""
    maker = makers.get(value)
    if maker is None:
        return []
    return [*(node for name in maker.input for node in chain(name, makers)), maker]


def slices(rows: int, width: int) -> int:
    """How many a matrix is cut into; one whose rows have no fitting divisor is left whole."""
    least = -(-rows * width // SLICE)
    return next((count for count in range(least, _MOST + 1) if rows % count == 0), 1)


def _shape(node: Any) -> tuple[int, int]:
    size = {attribute.name: attribute.i for attribute in node.attribute}
    return size["N"], size["K"]


def _cut(made: Sequence[Any], count: int) -> list[Any]:
    """A product of constants made by the nodes before it, in slices."""
    from onnx import helper  # noqa: PLC0415

    product, nodes, parts = made[-1], [], []
    for part in range(count):
        for node in made:
            copy = type(node).FromString(node.SerializeToString())
            for names in (copy.input, copy.output):
                names[:] = [name if name == product.input[0] else _name(name, part) for name in names]
            copy.name = copy.output[0]
            nodes.append(copy)
        rows = next(attribute for attribute in copy.attribute if attribute.name == "N")
        rows.i //= count
        parts.append(copy.output[0])
    return [*nodes, helper.make_node("Concat", parts, product.output, name=product.name, axis=-1)]


def _rows(tensor: Any, part: int, count: int) -> Any:
    copy = type(tensor).FromString(tensor.SerializeToString())
    copy.name = _name(tensor.name, part)
    copy.dims[0] //= count
    place = {entry.key: entry for entry in copy.external_data}
    length = int(place["length"].value) // count
    place["length"].value = str(length)
    place["offset"].value = str(int(place["offset"].value) + part * length)
    return copy


def _name(name: str, part: int) -> str:
    return f"{name}[{part}]"
