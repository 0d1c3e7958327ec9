"""The decoder graph.

Inputs (float32 unless said; S tokens in this chunk, K of them kept, T in the cache after it, R of those in a window)
    inputs_embeds [1, S, H]             scaled embeddings, soft tokens in their places
    per_layer_inputs [1, S, own * P]    per-layer embeddings of the layers with own keys; absent without them
    per_layer_inputs_shared [1, K, shared * P]   those of the layers that share keys, kept positions only
    position_ids int64 [1, S]           absolute positions
    num_logits_to_keep int64 [1]        K >= 1
    seqlens_k int32 [1] = T - 1, total_sequence_length int32 [] = T                  for full layers
    window_seqlens_k int32 [1] = R - 1, window_total_sequence_length int32 [] = R    for sliding layers
    window_bias [1, 1, S, R]    0 where a token sees a row of a sliding layer's window, else a large negative number;
                                only with bidirectional images, whose tokens a mask by position cannot tell apart
    kept_bias [K, T'], kept_window_bias [K, R']    the same of the kept tokens, on full and on sliding layers, if any
                                are read for them; T' is T, but at least 1 + K * G, where G query heads share a key head
    kept_seqlens_k, kept_total_sequence_length = T', kept_window_seqlens_k, kept_window_total_sequence_length = R'
    cos_sliding, sin_sliding, cos_full, sin_full    see gemma.rope
    past_key_values.N.key, .value [1, kv heads, capacity, head size]   own layers only; rows past T or R are ignored
Outputs
    logits [1, K, V], last_hidden_state [1, K, H], present.N.key, .value (meant to share the buffers of the past)

Of a prompt's tokens only keys and values are needed, so all but K of them end with those of the last layer that owns
any: on E2B that leaves less than a third of the work. A sliding layer's buffer holds the newest R rows; the caller
moves them to the front when it is full, and keys keep their absolute rotation. Buffers have room for T' and R' rows,
and hold ordinary numbers in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.export.graph import FLOAT, INT32, INT64, MS, Graph
from edge_runtime.export.kept import KeptTokens, head_groups
from edge_runtime.export.matrix import Stacked, Stored, head_rows
from edge_runtime.export.moe import add_experts
from edge_runtime.gemma.geometry import FULL, SLIDING, unsupported
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


def build_decoder(graph: Graph, weights: Weights, text: TextGeometry) -> None:
    """Adds the whole decoder to an empty graph; weights are read and rounded on the way.

    Raises:
        EdgeRuntimeError: a tensor is missing or has the wrong shape, or a head size that attention cannot take.
    """
    _check_heads(text)
    decoder = _Decoder(graph, weights, text)
    decoder.build()


def _check_heads(text: TextGeometry) -> None:
    for kind in (SLIDING, FULL):
        if text.head_dim(kind) % 16 or (text.head_dim(kind) and not text.rotated_pairs(kind)):
            raise unsupported(f"a head size of {text.head_dim(kind)} ({kind}), no multiple of 16,")


class TextLayers:
    """What the layers of the decoder and of the drafter have in common."""

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


class _Decoder(TextLayers):
    bias = ""

    def build(self) -> None:
        graph, text = self.graph, self.text
        embeds = graph.input("inputs_embeds", FLOAT, [1, "sequence_length", text.hidden_size])
        per_layer = self._per_layer_inputs(embeds)
        self.positions = graph.input("position_ids", INT64, [1, "sequence_length"])
        self.lengths()
        if text.bidirectional_images and SLIDING in text.layer_types:
            self.bias = graph.input("window_bias", FLOAT, [1, 1, "sequence_length", "resident_length"])
        self._caches()
        self.kept = KeptTokens(self, self.positions)
        stream = Stream(embeds)
        for layer in range(text.num_layers):
            stream = self._layer(layer, stream, per_layer[layer] if per_layer else None)
        self._head(stream)

    def _per_layer_inputs(self, embeds: str) -> list[str]:
        """Per-layer inputs of all layers, each [1, S or K, P]."""
        graph, text = self.graph, self.text
        own, shared, width = text.num_own_layers, text.num_shared_layers, text.ple_dim
        parts = []
        if width:
            name = graph.input("per_layer_inputs", FLOAT, [1, "sequence_length", own * width])
            parts.append((embeds, name, 0, own))
        if width and shared:
            name = graph.input("per_layer_inputs_shared", FLOAT, [1, "kept_length", shared * width])
            parts.append(("", name, own, text.num_layers))
        graph.input("num_logits_to_keep", INT64, [1])
        return [
            value
            for source, tokens, first, last in parts
            for value in self._mix(source or graph.last(embeds, "num_logits_to_keep"), tokens, first, last)
        ]

    def _mix(self, embeds: str, tokens: str, first: int, last: int) -> list[str]:
        """(norm(projection(embeds) * H^-0.5) + tokens) * 2^-0.5 of layers first..last.

        H^-0.5 lives in the norm's eps, 2^-0.5 in its weight and in the table that `tokens` comes from.
        """
        graph, text, width, count = self.graph, self.text, self.text.ple_dim, last - first
        stored = self.weights.tensor("per_layer_model_projection.weight", text.num_layers * width, text.hidden_size)
        matrix = Stored(stored, first=first * width, last=last * width)
        weight = self.weights.vector("per_layer_projection_norm.weight", width) * np.float32(2**-0.5)
        norm = graph.const(weight, "per_layer_projection_norm")
        context = graph.reshape(graph.linear(embeds, matrix), 0, 0, count, width)
        context = graph.rms_norm(context, norm, text.rms_eps * text.hidden_size)
        mixed = graph.add(graph.reshape(context, 0, 0, count * width), tokens)
        return graph.split(mixed, [width] * count)

    def _caches(self) -> None:
        text = self.text
        for layer in range(text.num_own_layers):
            kind = "total" if text.is_full(layer) else "window"
            for part in ("key", "value"):
                shape: list[int | str] = [1, text.kv_heads[layer], f"{kind}_capacity", text.head_dims[layer]]
                self.graph.input(names.past(layer, part), FLOAT, shape)
                self.graph.output(names.present(layer, part), names.present(layer, part), FLOAT, shape)

    def _layer(self, layer: int, stream: Stream, per_layer: str | None) -> Stream:
        graph, text = self.graph, self.text
        weights = self.weights.under(f"layers.{layer}")
        x, residual = self.enter(stream, weights, "input_layernorm")
        if layer < text.num_own_layers - 1:
            attended, heads = self._attend(layer, weights, x), None
        else:
            if layer == text.num_own_layers - 1:
                self._write(layer, weights, x)
                x, residual = self.kept.of(x), self.kept.of(residual)
                per_layer = per_layer and self.kept.of(per_layer)
            heads = head_groups(text.num_heads, text.kv_heads[layer])
            attended = self._read(layer, weights, x, heads)
        order = self.order(layer) if text.k_eq_v and text.is_full(layer) else None
        columns = None
        if order is not None or heads is not None:
            columns = head_rows(text.num_heads if heads is None else heads, text.head_dims[layer], order)
        added, residual = self.after_attention(weights, layer, attended, residual, columns)
        if per_layer is not None:
            residual = graph.add(added, residual)
            gate = graph.linear(residual, weights.matrix("per_layer_input_gate", text.ple_dim, text.hidden_size))
            gated = graph.mul(graph.gelu(gate), per_layer)
            added = graph.linear(gated, weights.matrix("per_layer_projection", text.hidden_size, text.ple_dim))
            added = self.normed(weights, "post_per_layer_input_norm", added)
        return Stream(added, residual, float(weights.vector("layer_scalar", 1)[0]))

    def _attend(self, layer: int, weights: Weights, x: str) -> str:
        """Attention of all tokens over their own keys and values and those before."""
        text = self.text
        q_proj, q_norm = self.query(weights, layer)
        query, key, value = self._projected(layer, weights, x, [q_proj])
        query = self.head_norm(query, q_norm, f"{weights.prefix}self_attn.q_norm.weight", text.num_heads)
        past, present = self._cache(layer)
        bias = "" if text.is_full(layer) else self.bias
        window = 0 if text.is_full(layer) else text.sliding_window
        return self.attention(layer, query, key, value, past, self.positions, present=present, window=window, bias=bias)

    def _write(self, layer: int, weights: Weights, x: str) -> None:
        """Keys and values of all tokens go into the cache; the kernel wants a query, whose result nobody uses."""
        key, value = self._projected(layer, weights, x, [])
        past, present = self._cache(layer)
        heads = self.text.kv_heads[layer]
        self.attention(layer, key, key, value, past, self.positions, present=present, window=1, heads=heads)

    def _read(self, layer: int, weights: Weights, x: str, heads: NDArray[np.int64] | None) -> str:
        """Attention of the kept tokens over a cache that holds their keys and values already."""
        q_proj, q_norm = self.query(weights, layer, heads)
        name = f"{weights.prefix}self_attn.q_norm.weight"
        query = self.head_norm(self.graph.linear(x, q_proj), q_norm, name, self.text.num_heads, fused=True)
        return self.kept.attention(layer, query, self._cache(self.text.kv_sources[layer])[1])

    def _projected(self, layer: int, weights: Weights, x: str, before: list[Stored]) -> list[str]:
        """What the matrices `before` make of x, and keys and values, normed."""
        text, graph = self.text, self.graph
        kv_heads, dim = text.kv_heads[layer], text.head_dims[layer]
        order, width = self.order(layer), kv_heads * dim
        rows = None if order is None else head_rows(kv_heads, dim, order)
        parts = [*before, weights.matrix("self_attn.k_proj", width, text.hidden_size, row_order=rows)]
        k_norm = weights.vector("self_attn.k_norm.weight", dim)
        if not (text.k_eq_v and text.is_full(layer)):
            parts.append(weights.matrix("self_attn.v_proj", width, text.hidden_size))
        whole = graph.linear(x, Stacked(parts) if len(parts) > 1 else parts[0])
        split = graph.split(whole, [part.shape[0] for part in parts]) if len(parts) > 1 else [whole]
        key, value = split[len(before)], split[-1]
        value = self.head_norm(value, np.ones(dim, np.float32), f"ones_{dim}", kv_heads)
        k_weight = k_norm if order is None else k_norm[order]
        key = self.head_norm(key, k_weight, f"{weights.prefix}self_attn.k_norm.weight", kv_heads)
        return [*split[: len(before)], key, value]

    def _cache(self, layer: int) -> tuple[list[str], list[str]]:
        """Names of a layer's cache, before and after."""
        parts = ("key", "value")
        return [names.past(layer, part) for part in parts], [names.present(layer, part) for part in parts]

    def _head(self, stream: Stream) -> None:
        graph, text = self.graph, self.text
        hidden, _ = self.enter(stream, self.weights, "norm")
        graph.output(hidden, "last_hidden_state", FLOAT, [1, "kept_length", text.hidden_size])
        logits = graph.linear(hidden, self.weights.matrix("embed_tokens", text.vocab_size, text.hidden_size))
        if text.softcap:
            cap = graph.scalar(text.softcap)
            logits = graph.mul(graph.op("Tanh", [graph.op("Div", [logits, cap])]), cap)
        graph.output(logits, "logits", FLOAT, [1, "kept_length", text.vocab_size])
