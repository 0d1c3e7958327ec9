"""Steps of few tokens, such as each of an answer: attention by two products over the rows before the step.

GroupQueryAttention reads a key head once for each query head that shares it. Here those query heads are rows of one
matrix, so that a key head is read once, and all threads share the reading. That takes plain matrices: the rows before
the step are inputs, one for each key head, which lie in the same memory as the caches, and the step's own keys and
values are multiplied beside them. A cache gets the new rows in its own memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.export.graph import BOOL, FLOAT, INT64, MS
from edge_runtime.gemma.geometry import FULL
from edge_runtime.gemma.rope import table_pairs

if TYPE_CHECKING:
    from edge_runtime.export.layers import TextLayers

FLAG = "few_tokens"
"""The input that says whether a step is one of few tokens; it then keeps the logits of all of them."""


class FewTokens:
    """All tokens of such a step."""

    def __init__(self, layers: TextLayers, positions: str, sights: dict[str, str]) -> None:
        """Adds the inputs.

        Args:
            layers: The decoder.
            positions: Of all tokens, [1, tokens].
            sights: What they see on each kind of layers, [tokens, rows]; see `kept.KeptTokens`.
        """
        self._graph, self._text = layers.graph, layers.text
        self._positions, self._sights = positions, sights
        self.flag = self._graph.input(FLAG, BOOL, [])
        self._own: dict[int, tuple[list[list[str]], list[str]]] = {}
        self._rows: dict[str, str] = {}
        self._shared: dict[str, tuple[str, str]] = {}

    def own(self, layer: int, key: str, value: str) -> None:
        """Notes a layer's keys and values of the step's tokens, [1, tokens, kv_heads * head_dim], not yet rotated."""
        graph, count, dim = self._graph, self._text.kv_heads[layer], self._text.head_dims[layer]
        heads, updates = [], []
        for part, x in zip(names.PARTS, (self._rotated(layer, key, count), value), strict=True):
            rows = graph.reshape(x, -1, count, dim)
            updates.append(rows)
            split = [rows] if count == 1 else graph.op_n("Split", [rows], count, axis=1, num_outputs=count)
            heads.append([graph.reshape(head, -1, dim) for head in split])
            for head in range(count):
                graph.input(names.before(layer, part, head), FLOAT, [f"{self._kind(layer)}_before", dim])
        self._own[layer] = heads, updates
        # What branches share must lie outside of them.
        self._index(layer)
        self._shared_by(layer)

    def write(self, layer: int) -> list[str]:
        """The layer's cache with its tokens' keys and values, in its own memory if past and present share that."""
        index = self._index(layer)
        return [
            self._graph.op("ScatterND", [names.past(layer, part), index, rows])
            for part, rows in zip(names.PARTS, self._own[layer][1], strict=True)
        ]

    def attention(self, layer: int, query: str, *, grouped: bool) -> str:
        """Attention of all tokens, in a branch of the graph.

        Args:
            layer: Whose queries, [1, tokens, heads * head_dim], not yet rotated.
            query: They.
            grouped: Their heads are in the order of `kept.head_groups`.
        """
        graph, text, source = self._graph, self._text, self._text.kv_sources[layer]
        count, dim = text.kv_heads[layer], text.head_dims[layer]
        group = text.num_heads // count
        query = self._rotated(layer, query, text.num_heads)
        queries, axis = [query], 2 if grouped else 1
        if count > 1:
            by_head = graph.reshape(query, -1, *((group, count) if grouped else (count, group)), dim)
            queries = graph.op_n("Split", [by_head], count, axis=axis, num_outputs=count)
        found = [self._one_head(source, head, graph.reshape(rows, -1, dim), group) for head, rows in enumerate(queries)]
        if count > 1:
            parts = [graph.op("Unsqueeze", [part, graph.ints(axis)]) for part in found]
            found = [graph.op("Concat", parts, axis=axis)]
        return graph.reshape(found[0], 1, -1, text.num_heads * dim)

    def _one_head(self, source: int, head: int, rows: str, group: int) -> str:
        """What queries [tokens * group, head_dim] read of a key head: [tokens, group, head_dim]."""
        graph = self._graph
        key, value = (names.before(source, part, head) for part in names.PARTS)
        own_key, own_value = (self._own[source][0][part][head] for part in range(len(names.PARTS)))
        sight, sizes = self._shared_by(source)
        scores = [graph.op("FusedMatMul", [keys, rows], domain=MS, transB=1) for keys in (key, own_key)]
        by_token = graph.reshape(graph.op("Concat", scores, axis=0), 0, -1, group)
        seen = graph.add(graph.transpose(by_token, 1, 2, 0), sight)
        shares = graph.op_n("Split", [graph.op("Softmax", [seen], axis=-1), sizes], 2, axis=-1)
        read = [graph.op("MatMul", pair) for pair in zip(shares, (value, own_value), strict=True)]
        return graph.add(*read)

    def _index(self, layer: int) -> str:
        """Where rows of the step's tokens lie in a cache, int64 [tokens, kv_heads, 3]: 0, head and row."""
        graph, kind, count = self._graph, self._kind(layer), self._text.kv_heads[layer]
        if kind not in self._rows:
            rows = self._positions
            if kind != FULL:
                moved = graph.op("Sub", ["window_total_sequence_length", "total_sequence_length"])
                rows = graph.add(rows, graph.op("Cast", [moved], to=INT64))
            rows = graph.mul(graph.reshape(rows, -1, 1, 1), graph.const(np.array([[[0, 0, 1]]])))
            heads = np.zeros((1, count, 3), np.int64)
            heads[..., 1] = np.arange(count)
            self._rows[kind] = graph.add(rows, graph.const(heads))
        return self._rows[kind]

    def _shared_by(self, layer: int) -> tuple[str, str]:
        """What the tokens see, [tokens, 1, rows], and how many rows lie before them and are theirs, int64 [2]."""
        graph, kind = self._graph, self._kind(layer)
        if kind not in self._shared:
            counts = [
                graph.op("Shape", [rows], end=1)
                for rows in (names.before(layer, names.PARTS[0], 0), self._own[layer][0][0][0])
            ]
            sight = graph.op("Unsqueeze", [self._sights[kind], graph.ints(1)])
            self._shared[kind] = sight, graph.op("Concat", counts, axis=0)
        return self._shared[kind]

    def _rotated(self, layer: int, x: str, heads: int) -> str:
        kind, name = self._kind(layer), "full" if self._text.is_full(layer) else "sliding"
        inputs = [x, self._positions, f"cos_{name}", f"sin_{name}"]
        width = 2 * table_pairs(self._text, kind)
        return self._graph.op("RotaryEmbedding", inputs, domain=MS, num_heads=heads, rotary_embedding_dim=width)

    def _kind(self, layer: int) -> str:
        return self._text.layer_types[layer]
