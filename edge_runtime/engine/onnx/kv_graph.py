"""Decoder graphs for keys and values of other types: changes the attention nodes of an exported graph.

ONNX Runtime's GroupQueryAttention on the CPU takes float32 queries with float32 or int8 keys and values, or all of them
in float16. So
int8    each channel has a scale of its own. Values are normed without weight and keys are normed, multiplied by a
        weight and turned, so what a channel can be is known from the weights: the scale is `REACH` standard deviations
        over 127, and what is beyond that is cut off. Nodes that only read a cache must give it back, too.
fp16    queries, keys and values are rounded before and the result is made float32 again after each node. The kernel
        widens a layer's whole cache to float32 while it runs: the memory is less than that of fp32 only where several
        full layers have keys of their own.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.rope import table_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.kv_cache import KVType
    from edge_runtime.gemma.geometry import TextGeometry

REACH = 8.0
"""Standard deviations of a channel that int8 holds."""

_ATTENTION = "GroupQueryAttention"
_K_NORM = re.compile(r"layers\.(\d+)\.self_attn\.k_norm\.weight$")
_CACHE = re.compile(r"(?:past_key_values|present)\.(\d+)\.key")
_PAST_KEY, _BIAS, _K_SCALE = 3, 10, 12  # places of inputs


def read_graph(path: Path) -> Any:
    """An `onnx.ModelProto` without its weights.

    Raises:
        EdgeRuntimeError: It is missing or no graph.
    """
    import onnx  # noqa: PLC0415 - 0.2 s, only where a graph is changed

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # noqa: BLE001 - onnx lets protobuf's own exceptions through
        raise EdgeRuntimeError(f"{path}: the graph cannot be loaded: {str(error).splitlines()[:1]}") from None


def refill(field: Any, values: Sequence[Any]) -> None:
    """Makes a repeated field of protobuf messages hold copies of `values`, some of which may be its own."""
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)


def set_kv_type(model: Any, text: TextGeometry, kv_type: KVType, folder: Path) -> None:
    """Makes a decoder graph, as exported, keep keys and values as `kv_type`.

    Args:
        model: `onnx.ModelProto`, changed in place.
        text: The decoder's shape.
        kv_type: The type.
        folder: Where the graph's external data lies; read for int8.
    """
    from onnx import TensorProto  # noqa: PLC0415

    if kv_type == "fp32":
        return
    graph = model.graph
    without_few(graph)
    element = {"fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}[kv_type]
    places = [(layer, part) for layer in range(text.num_own_layers) for part in names.PARTS]
    caches = {name for place in places for name in (names.past(*place), names.present(*place))}
    for value in (*graph.input, *graph.output):
        if value.name in caches:
            value.type.tensor_type.elem_type = element
    if kv_type == "fp16":
        _make_half(graph)
    else:
        _make_int8(graph, text, folder)


def without_few(graph: Any) -> None:
    """Takes out what is there for steps of few tokens, which needs keys and values in float32."""
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type != "If":
            nodes.append(node)
            continue
        otherwise = next(attribute.g for attribute in node.attribute if attribute.name == "else_branch")
        outer = dict(zip((value.name for value in otherwise.output), node.output, strict=True))
        for inner in otherwise.node:
            for names_ in (inner.input, inner.output):
                names_[:] = [outer.get(name, name) for name in names_]
            nodes.append(inner)
    refill(graph.node, nodes)
    prune(graph)


def prune(graph: Any) -> None:
    """Takes out what the graph's outputs do not follow from: nodes without branches, inputs, constants."""
    used = {value.name for value in graph.output}
    kept: list[Any] = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    refill(graph.node, kept[::-1])
    for values in (graph.input, graph.initializer):
        refill(values, [value for value in values if value.name in used])


def key_scales(text: TextGeometry, layer: int, k_norm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale of each channel of a layer's keys, `[kv_heads * head_dim]`, from the weight of k_norm as the graph has it.

    The two channels of a turning pair take each other's place, so they share a scale.
    """
    spread = np.abs(k_norm.astype(np.float64))
    pairs = table_pairs(text, text.layer_types[layer])
    half = np.sqrt((spread[:pairs] ** 2 + spread[pairs : 2 * pairs] ** 2) / 2)
    spread[:pairs] = spread[pairs : 2 * pairs] = half
    # A channel can't be larger than the norm lets it be.
    scale = np.maximum(spread * min(REACH, math.sqrt(len(spread))) / 127, 1e-12)
    return np.tile(scale.astype(np.float32), text.kv_heads[layer])


def _make_int8(graph: Any, text: TextGeometry, folder: Path) -> None:
    from onnx import TensorProto, helper  # noqa: PLC0415

    weights = {
        int(found[1]): initializer for initializer in graph.initializer if (found := _K_NORM.search(initializer.name))
    }
    for layer in range(text.num_own_layers):
        shape = (1, text.kv_heads[layer], 1, text.head_dims[layer])
        value = np.full(shape, min(REACH, math.sqrt(shape[3])) / 127, np.float32)
        key = key_scales(text, layer, _values(weights[layer], folder))
        for part, scale in (("key", key), ("value", value)):
            tensor = helper.make_tensor(_scale(layer, part), TensorProto.FLOAT, shape, scale.tobytes(), raw=True)
            graph.initializer.append(tensor)
    kinds = {value.name: value for value in graph.output}
    for number, node in enumerate(node for node in graph.node if node.op_type == _ATTENTION):
        source = int(_CACHE.fullmatch(node.input[_PAST_KEY])[1])  # type: ignore[index]  # they have no other names
        node.input.extend([""] * (_K_SCALE - len(node.input)))
        node.input.extend(_scale(source, part) for part in names.PARTS)
        for name in ("k_quant_type", "v_quant_type"):
            node.attribute.append(helper.make_attribute(name, "PER_CHANNEL"))
        node.attribute.append(helper.make_attribute("kv_cache_bit_width", 8))
        if len(node.output) == 1:
            for part in names.PARTS:
                present = names.present(source, part)
                output = names.given_back(present, number)
                node.output.append(output)
                value = helper.make_tensor_value_info(output, TensorProto.INT8, None)
                value.type.tensor_type.shape.CopyFrom(kinds[present].type.tensor_type.shape)
                graph.output.append(value)


def _make_half(graph: Any) -> None:
    from onnx import TensorProto, helper  # noqa: PLC0415

    for value in graph.input:
        if value.name.startswith(("cos_", "sin_")):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    halves: dict[str, str] = {}
    nodes = []

    def half(name: str) -> str:
        if name and name not in halves:
            halves[name] = f"{name}/fp16"
            cast = helper.make_node("Cast", [name], [halves[name]], name=halves[name], to=TensorProto.FLOAT16)
            nodes.append(cast)
        return halves.get(name, "")

    for node in graph.node:
        if node.op_type == _ATTENTION:
            for place in (0, 1, 2, _BIAS):
                if place < len(node.input):
                    node.input[place] = half(node.input[place])
            output = node.output[0]
            node.output[0] = f"{output}/fp16"
            nodes += [node, helper.make_node("Cast", [node.output[0]], [output], name=output, to=TensorProto.FLOAT)]
            node.name = node.output[0]
        else:
            nodes.append(node)
    refill(graph.node, nodes)


def _scale(layer: int, part: str) -> str:
    return f"kv_scale.{layer}.{part}"


def _values(tensor: Any, folder: Path) -> NDArray[np.float32]:
    """A float32 constant of a graph, from wherever it lies."""
    if tensor.raw_data:
        return np.frombuffer(tensor.raw_data, np.float32)
    place = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place["offset"]))
        return np.frombuffer(file.read(int(place["length"])), np.float32)
