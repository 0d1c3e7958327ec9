"""The few tokens of a step whose logits are wanted, from the last layer with keys of its own on.

Their keys and values lie in the cache already. GroupQueryAttention reads a key head once for each query head that
shares it; here those query heads are rows of one head instead, tokens by heads, so that it is read once: half the time
for one token. A mask by position cannot tell such rows apart, so what each of them sees is an input. And the kernel
wants more keys than rows (of as many it makes a prompt's beginning): where there are fewer it is told of more, which no
row sees but the buffers and the rotary tables have room for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.export.graph import FLOAT, INT32
from edge_runtime.gemma.geometry import FULL, SLIDING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.export.layers import TextLayers

COUNT = "num_logits_to_keep"
"""The input that says how many they are."""
PREFIXES = {FULL: "kept_", SLIDING: "kept_window_"}
"""How the inputs begin that say what they see."""


class KeptTokens:
    """The last `COUNT` tokens of a step.

    Attributes:
        sights: For each kind of layers, what each of them sees, [kept, rows of the cache].
    """

    def __init__(self, layers: TextLayers, positions: str) -> None:
        """Adds the inputs.

        Args:
            layers: The decoder.
            positions: Of all tokens, [1, tokens].
        """
        self._layers, self._graph, self._text = layers, layers.graph, layers.text
        self._positions = positions
        self.sights = {}
        for kind, prefix in PREFIXES.items():
            if kind in self._text.layer_types:
                self.sights[kind] = self._graph.input(f"{prefix}bias", FLOAT, ["kept_length", f"{prefix}keys"])
                self._graph.input(f"{prefix}seqlens_k", INT32, [1])
                self._graph.input(f"{prefix}total_sequence_length", INT32, [])

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
        prefix, empty = PREFIXES[kind], self._layers.no_keys(layer)
        positions = self._graph.op(
            "Expand", [self._graph.reshape(self.of(self._positions), -1, 1), self._graph.ints(1, group)]
        )
        attended = self._layers.attention(
            layer,
            self._graph.reshape(query, 1, -1, kv_heads * dim),
            empty,
            empty,
            cache,
            self._graph.reshape(positions, 1, -1),
            present=[],
            bias=self._sight(kind, group),
            heads=kv_heads,
            lengths=[f"{prefix}seqlens_k", f"{prefix}total_sequence_length"],
        )
        return self._graph.reshape(attended, 1, -1, text.num_heads * dim)

    def _sight(self, kind: str, group: int) -> str:
        """What each row sees, [1, 1, kept * group, keys], from what each token sees."""
        graph = self._graph
        tokens = graph.op("Unsqueeze", [self.sights[kind], graph.ints(1)])
        rows = graph.op("Flatten", [graph.op("Expand", [tokens, graph.ints(1, group, 1)])], axis=2)
        return graph.op("Unsqueeze", [rows, graph.ints(0, 1)])


def head_groups(heads: int, kv_heads: int) -> NDArray[np.int64] | None:
    """The order of query heads in which one of each key head follows another, int64 [heads]; None: as they are."""
    order = np.arange(heads).reshape(kv_heads, -1).T.reshape(-1)
    return None if (order == np.arange(heads)).all() else order
