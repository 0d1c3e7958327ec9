"""What the layers of the decoder and of the drafter have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.export.graph import FLOAT, INT32, MS, Graph
from edge_runtime.export.matrix import Stored, head_rows
from edge_runtime.export.moe import add_experts
from edge_runtime.gemma.geometry import FULL, SLIDING
from edge_runtime.gemma.rope import head_order, table_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.export.weights import Weights
    from edge_runtime.gemma.geometry import TextGeometry

_KINDS = {SLIDING: "sliding", FULL: "full"}


@dataclass
class Stream:
    """The residual stream between layers: `value`, or (value + addend) * scale not yet worked out."""

    value: str
    addend: str | None = None
    scale: float = 1.0


class TextLayers:
    """Their nodes; a graph, its weights and the shape of the model."""

    def __init__(self, graph: Graph, weights: Weights, text: TextGeometry) -> None:
        self.graph, self.weights, self.text = graph, weights, text

    def lengths(self) -> None:
        """Declares the inputs that say how much of the caches is filled, and the rotary tables."""
        self.graph.input("seqlens_k", INT32, [1])
        self.graph.input("total_sequence_length", INT32, [])
        if SLIDING in self.text.layer_types:
            self.graph.input("window_seqlens_k", INT32, [1])
            self.graph.input("window_total_sequence_length", INT32, [])
        for kind, name in _KINDS.items():
            if kind in self.text.layer_types:
                for function in ("cos", "sin"):
                    self.graph.input(f"{function}_{name}", FLOAT, ["max_positions", table_pairs(self.text, kind)])

    def order(self, layer: int) -> NDArray[np.int64] | None:
        """The order of a head's dimensions in queries and keys, None for that of the checkpoint."""
        kind, dim = self.text.layer_types[layer], self.text.head_dims[layer]
        pairs = table_pairs(self.text, kind)
        return None if 2 * pairs == dim else head_order(dim, pairs)

    def norm_weight(self, weights: Weights, name: str) -> str:
        """The weight of a norm over the hidden size."""
        vector = weights.vector(f"{name}.weight", self.text.hidden_size)
        return self.graph.const(vector, f"{weights.prefix}{name}.weight")

    def normed(self, weights: Weights, name: str, x: str) -> str:
        """RMSNorm over the hidden size."""
        return self.graph.rms_norm(x, self.norm_weight(weights, name), self.text.rms_eps)

    def settle(self, stream: Stream) -> str:
        """Works out the residual stream's value."""
        if stream.addend is None:
            return stream.value
        total = self.graph.add(stream.value, stream.addend)
        return total if stream.scale == 1.0 else self.graph.mul(total, self.graph.scalar(stream.scale))

    def enter(self, stream: Stream, weights: Weights, name: str) -> tuple[str, str]:
        """The normed stream and the stream itself.

        norm(s * x) with eps is norm(x) with eps / s^2 for s > 0, so that addition and norm are one kernel.
        """
        eps = self.text.rms_eps
        if stream.addend is None or stream.scale < 1e-3:
            value = self.settle(stream)
            return self.normed(weights, name, value), value
        normed, total = self.add_norm(stream.value, stream.addend, weights, name, eps / stream.scale**2)
        return normed, total if stream.scale == 1.0 else self.graph.mul(total, self.graph.scalar(stream.scale))

    def add_norm(self, a: str, b: str, weights: Weights, name: str, eps: float) -> tuple[str, str]:
        """RMSNorm of a + b, and a + b."""
        base = self.graph.fresh("skip_norm")
        outputs = [base, "", "", f"{base}.sum"]
        inputs = [a, b, self.norm_weight(weights, name)]
        self.graph.op_n("SkipSimplifiedLayerNormalization", inputs, outputs, domain=MS, epsilon=eps)
        return base, f"{base}.sum"

    def head_norm(self, x: str, weight: NDArray[np.float32], name: str, heads: int, *, fused: bool = False) -> str:
        """RMSNorm of each head of x [1, S, heads * head_dim].

        The fused kernel saves nodes and wins for few tokens; for many the plain norm is faster.
        """
        constant, eps, dim = self.graph.const(weight, name), self.text.rms_eps, len(weight)
        if fused:
            return self.graph.op("BranchwiseRMSNorm", [x, constant], domain=MS, num_branches=heads, epsilon=eps)
        if heads == 1:
            return self.graph.rms_norm(x, constant, eps)
        by_head = self.graph.reshape(x, 0, 0, heads, dim)
        return self.graph.reshape(self.graph.rms_norm(by_head, constant, eps), 0, 0, heads * dim)

    def query(
        self, weights: Weights, layer: int, heads: NDArray[np.int64] | None = None
    ) -> tuple[Stored, NDArray[np.float32]]:
        """q_proj and the weight of q_norm, in the order of `order`; the heads in the order of `heads`."""
        count, dim = self.text.num_heads, self.text.head_dims[layer]
        order = self.order(layer)
        rows = None if order is None and heads is None else head_rows(count if heads is None else heads, dim, order)
        matrix = weights.matrix("self_attn.q_proj", count * dim, self.text.hidden_size, row_order=rows)
        norm = weights.vector("self_attn.q_norm.weight", dim)
        return matrix, norm if order is None else norm[order]

    def attention(
        self,
        layer: int,
        query: str,
        keys: str,
        values: str,
        past: list[str],
        positions: str,
        *,
        present: list[str],
        window: int = 0,
        bias: str = "",
        heads: int | None = None,
        lengths: list[str] | None = None,
    ) -> str:
        """GroupQueryAttention over the cache; `present` is empty for a layer that only reads it.

        Args:
            layer: Whose cache, lengths and rotation.
            query: [1, tokens, heads * head_dim].
            keys: Those of the tokens, [1, tokens, kv_heads * head_dim].
            values: The same.
            past: The cache.
            positions: [1, tokens].
            present: The cache with the keys and values.
            window: How many keys a token sees, with its own; 0: all.
            bias: [1, 1, tokens, rows of the cache], which alone says what a token sees.
            heads: Of the query; None: as the text model has.
            lengths: How much of the cache is filled, in the kernel's two forms; None: what the inputs say.
        """
        text = self.text
        prefix, kind = ("", "full") if text.is_full(layer) else ("window_", "sliding")
        lengths = lengths or [f"{prefix}seqlens_k", f"{prefix}total_sequence_length"]
        inputs = [query, keys, values, *past, *lengths, f"cos_{kind}", f"sin_{kind}", positions]
        attributes = {"local_window_size": window} if window else {}
        if bias:
            inputs.append(bias)
            attributes = {"causal": 0}
        output = self.graph.fresh("attention")
        self.graph.op_n(
            "GroupQueryAttention",
            inputs,
            [output, *present],
            domain=MS,
            num_heads=text.num_heads if heads is None else heads,
            kv_num_heads=text.kv_heads[layer],
            do_rotary=1,
            scale=1.0,
            **attributes,
        )
        return output

    def no_keys(self, layer: int) -> str:
        """The empty keys and values of a layer that reads another's."""
        width = self.text.kv_heads[layer] * self.text.head_dims[layer]
        return self.graph.const(np.zeros((1, 0, width), np.float32), f"no_keys_{width}")

    def after_attention(
        self, weights: Weights, layer: int, attended: str, residual: str, columns: NDArray[np.int64] | None
    ) -> tuple[str, str]:
        """o_proj, its norm, the residual and the MLP: the MLP's normed output and what it is to be added to.

        `columns` is the order in which `attended` has the columns of the checkpoint's o_proj; None: that of it.
        """
        text, graph = self.text, self.graph
        width, hidden = text.num_heads * text.head_dims[layer], text.hidden_size
        output = graph.linear(attended, weights.matrix("self_attn.o_proj", hidden, width, column_order=columns))
        output = self.normed(weights, "post_attention_layernorm", output)
        x, residual = self.add_norm(output, residual, weights, "pre_feedforward_layernorm", text.rms_eps)
        mlp = text.mlp_widths[layer]
        gate = graph.linear(x, weights.matrix("mlp.gate_proj", mlp, hidden))
        up = graph.linear(x, weights.matrix("mlp.up_proj", mlp, hidden))
        down = graph.linear(graph.mul(graph.gelu(gate), up), weights.matrix("mlp.down_proj", hidden, mlp))
        if not text.num_experts:
            return self.normed(weights, "post_feedforward_layernorm", down), residual
        x = self.normed(weights, "pre_feedforward_layernorm_2", residual)
        chosen = add_experts(graph, weights, text, x, residual)
        parts = (("post_feedforward_layernorm_1", down), ("post_feedforward_layernorm_2", chosen))
        dense, sparse = (self.normed(weights, name, part) for name, part in parts)
        return self.add_norm(dense, sparse, weights, "post_feedforward_layernorm", text.rms_eps)[0], residual
