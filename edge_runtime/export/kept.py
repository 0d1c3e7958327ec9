"""The few tokens of a step whose logits are wanted, from the last layer with keys of its own on.

Their keys and values lie in the cache already. GroupQueryAttention reads a key head once for each query head that
shares it; here those query heads are rows of one head instead, tokens by heads, so that it is read once: half the time
for one token. A mask by position cannot tell such rows apart, so what each of them sees is an input. And the kernel
wants more keys than rows (of as many it makes a prompt's beginning): where there are fewer it is told of more, which no
row sees but the buffers and the rotary tables have room for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge_runtime.export.graph import INT32, INT64, Graph
from edge_runtime.gemma.geometry import FULL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.gemma.geometry import TextGeometry

COUNT = "num_logits_to_keep"
"""The input that says how many they are."""
_HIDDEN = -1e9
"""Large enough for a share of exactly 0, finite so that no kernel makes a NaN of it."""


class Layers(Protocol):
    """What is needed of the decoder that is built; see `decoder.TextLayers`."""

    graph: Graph
    text: TextGeometry

    def no_keys(self, layer: int) -> str:
        """See there."""

    def attention(
        self, layer: int, query: str, keys: str, values: str, past: list[str], positions: str, *, present: list[str],
        window: int = 0, bias: str = "", heads: int | None = None, lengths: list[str] | None = None,
    ) -> str:  # fmt: skip
        """See there."""


@dataclass(frozen=True)
class Rows:
    """The rows of the kept tokens, for one kind of layer."""

    lengths: list[str]
    """int32 [1], index of the last key; int32 [], how many keys the kernel is told of."""
    positions: str
    """int64 [1, rows]."""
    sight: str
    """0 where a row sees a key, else a large negative number: [1, 1, rows, keys]."""


class KeptTokens:
    """The last `COUNT` tokens of a step."""

    def __init__(self, layers: Layers, positions: str, window_bias: str) -> None:
        """Of a step.

        Args:
            layers: The decoder.
            positions: Of all tokens, [1, tokens].
            window_bias: What all tokens see on sliding layers, [1, 1, tokens, keys]; "": those before, in the window.
        """
        self._layers, self._graph, self._text = layers, layers.graph, layers.text
        self._all_positions, self._window_bias = positions, window_bias
        self._rows: dict[tuple[str, int], Rows] = {}

    def of(self, x: str) -> str:
        """Theirs of a value of all tokens, [1, tokens, n]."""
        return self._graph.last(x, COUNT)

    def attention(self, layer: int, query: str, cache: list[str]) -> str:
        """Attention over a full cache; queries have their heads in the order of `head_groups`, and so has the result.

        Args:
            layer: Whose queries, [1, kept, heads * head_dim].
            query: They.
            cache: Keys and values.
        """
        text, kv_heads, dim = self._text, self._text.kv_heads[layer], self._text.head_dims[layer]
        kind, group = text.layer_types[layer], text.num_heads // kv_heads
        if (kind, group) not in self._rows:
            self._rows[kind, group] = self._make_rows(kind, group)
        rows, empty = self._rows[kind, group], self._layers.no_keys(layer)
        attended = self._layers.attention(
            layer,
            self._graph.reshape(query, 1, -1, kv_heads * dim),
            empty,
            empty,
            cache,
            rows.positions,
            present=[],
            bias=rows.sight,
            heads=kv_heads,
            lengths=rows.lengths,
        )
        return self._graph.reshape(attended, 1, -1, text.num_heads * dim)

    def _make_rows(self, kind: str, group: int) -> Rows:
        graph = self._graph
        length = "total_sequence_length" if kind == FULL else "window_total_sequence_length"
        one = graph.const(np.array(1, np.int32), "int32_1")
        count = graph.op("Squeeze", [graph.op("Cast", [COUNT], to=INT32)])
        many = graph.op("Mul", [count, graph.const(np.array(group, np.int32), f"int32_{group}")])
        total = graph.op("Max", [length, graph.op("Add", [many, one])])
        last = graph.op("Unsqueeze", [graph.op("Sub", [total, one]), graph.ints(0)])
        own = graph.reshape(self.of(self._all_positions), -1, 1)
        positions = graph.reshape(graph.op("Expand", [own, graph.ints(1, group)]), 1, -1)
        if self._window_bias and kind != FULL:
            tokens = self._given_sight(length, total)
        else:
            tokens = self._sight(kind, count, length, total)
        sight = graph.op("Expand", [graph.op("Unsqueeze", [tokens, graph.ints(1)]), graph.ints(1, group, 1)])
        sight = graph.op("Unsqueeze", [graph.op("Flatten", [sight], axis=2), graph.ints(0, 1)])
        return Rows([last, total], positions, sight)

    def _sight(self, kind: str, count: str, length: str, total: str) -> str:
        """0 where a token sees a key, else a large negative number: [kept, total]."""
        graph = self._graph
        zero, one = (graph.const(np.array(value, np.int32), f"int32_{value}") for value in (0, 1))
        own = graph.op("Range", [graph.op("Sub", [length, count]), length, one])
        own = graph.op("Unsqueeze", [own, graph.ints(1)])
        keys = graph.op("Range", [zero, total, one])
        seen = graph.op("LessOrEqual", [keys, own])
        if kind != FULL:
            window = graph.const(np.array(self._text.sliding_window, np.int32), "sliding_window")
            seen = graph.op("And", [seen, graph.op("Less", [own, graph.op("Add", [keys, window])])])
        return graph.op("Where", [seen, graph.scalar(0.0), graph.scalar(_HIDDEN)])

    def _given_sight(self, length: str, total: str) -> str:
        """The same, from what is given for all tokens and all keys that there are."""
        graph = self._graph
        given = graph.op("Squeeze", [graph.last(self._window_bias, COUNT, axis=2), graph.ints(0, 1)])
        more = graph.op("Cast", [graph.op("Sub", [total, length])], to=INT64)
        pads = graph.op("Concat", [graph.ints(0, 0, 0), graph.op("Unsqueeze", [more, graph.ints(0)])], axis=0)
        return graph.op("Pad", [given, pads, graph.scalar(_HIDDEN)])


def head_groups(heads: int, kv_heads: int) -> NDArray[np.int64] | None:
    """The order of query heads in which one of each key head follows another, int64 [heads]; None: as they are."""
    order = np.arange(heads).reshape(kv_heads, -1).T.reshape(-1)
    return None if (order == np.arange(heads)).all() else order
