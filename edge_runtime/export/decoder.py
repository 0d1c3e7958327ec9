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
    kept_bias [K, T'], kept_window_bias [K, R']    the same of the kept tokens, on full and on sliding layers; T' is T,
                                but at least 1 + K * G, where G query heads share a key head
    kept_seqlens_k, kept_total_sequence_length = T', kept_window_seqlens_k, kept_window_total_sequence_length = R'
    cos_sliding, sin_sliding, cos_full, sin_full    see gemma.rope
    past_key_values.N.key, .value [1, kv heads, capacity, head size]   own layers only; rows past T or R are ignored
    few_tokens bool []              a step of few tokens with K = S and rows before it: faster where rows are many. Then
                                    T' = T, and R' counts the S tokens and those before that any of them sees
    before.N.key.H, .value.H [T' - S or R' - S, head size]   if it is one, these rows of key head H: the memory they
                                    have in past_key_values.N; anything else if not
Outputs
    logits [1, K, V], last_hidden_state [1, K, H], present.N.key, .value (meant to share the buffers of the past)

Of a prompt's tokens only keys and values are needed, so all but K of them end with those of the last layer that owns
any: on E2B that leaves less than a third of the work. A sliding layer's buffer holds the newest R rows; the caller
moves them to the front when it is full, and keys keep their absolute rotation. Buffers have room for T' and R' rows,
and hold ordinary numbers in all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.export.few import FewTokens
from edge_runtime.export.graph import FLOAT, INT64, Graph
from edge_runtime.export.kept import KeptTokens, head_groups
from edge_runtime.export.layers import Stream, TextLayers
from edge_runtime.export.matrix import Stored, head_rows
from edge_runtime.gemma.geometry import FULL, SLIDING, unsupported

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.export.weights import Weights
    from edge_runtime.gemma.geometry import TextGeometry


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
        self.few = FewTokens(self, self.positions, self.kept.sights)
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
        outputs, name = text.num_layers * width, "per_layer_model_projection"
        matrix = self.weights.matrix(name, outputs, text.hidden_size, first=first * width, last=last * width)
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
            for part in names.PARTS:
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
        self.few.own(layer, key, value)

        def few() -> list[str]:
            return [self.few.attention(layer, query, grouped=False), *self.few.write(layer)]

        def many() -> list[str]:
            new = self._new(layer)
            attended = self.attention(
                layer, query, key, value, past, self.positions, present=new, window=window, bias=bias
            )
            return [attended, *new]

        return self.graph.either(self.few.flag, few, many, [self.graph.fresh("attended"), *present])[0]

    def _write(self, layer: int, weights: Weights, x: str) -> None:
        """Keys and values of all tokens go into the cache; the kernel wants a query, whose result nobody uses."""
        key, value = self._projected(layer, weights, x, [])
        past, present = self._cache(layer)
        heads = self.text.kv_heads[layer]
        self.few.own(layer, key, value)

        def many() -> list[str]:
            new = self._new(layer)
            self.attention(layer, key, key, value, past, self.positions, present=new, window=1, heads=heads)
            return new

        self.graph.either(self.few.flag, lambda: self.few.write(layer), many, present)

    def _read(self, layer: int, weights: Weights, x: str, heads: NDArray[np.int64] | None) -> str:
        """Attention of the kept tokens over a cache that holds their keys and values already."""
        q_proj, q_norm = self.query(weights, layer, heads)
        name = f"{weights.prefix}self_attn.q_norm.weight"
        query = self.head_norm(self.graph.linear(x, q_proj), q_norm, name, self.text.num_heads, fused=True)
        cache = self._cache(self.text.kv_sources[layer])[1]
        return self.graph.either(
            self.few.flag,
            lambda: [self.few.attention(layer, query, grouped=True)],
            lambda: [self.kept.attention(layer, query, cache)],
            [self.graph.fresh("attended")],
        )[0]

    def _new(self, layer: int) -> list[str]:
        """Names for a layer's cache in a branch that writes it."""
        return [self.graph.fresh(name) for name in self._cache(layer)[1]]

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
        split = graph.linears(x, parts)
        key, value = split[len(before)], split[-1]
        value = self.head_norm(value, np.ones(dim, np.float32), f"ones_{dim}", kv_heads)
        k_weight = k_norm if order is None else k_norm[order]
        key = self.head_norm(key, k_weight, f"{weights.prefix}self_attn.k_norm.weight", kv_heads)
        return [*split[: len(before)], key, value]

    def _cache(self, layer: int) -> tuple[list[str], list[str]]:
        """Names of a layer's cache, before and after."""
        past, present = ([named(layer, part) for part in names.PARTS] for named in (names.past, names.present))
        return past, present

    def _head(self, stream: Stream) -> None:
        graph, text = self.graph, self.text
        hidden, _ = self.enter(stream, self.weights, "norm")
        graph.output(hidden, "last_hidden_state", FLOAT, [1, "kept_length", text.hidden_size])
        logits = graph.linear(hidden, self.weights.matrix("embed_tokens", text.vocab_size, text.hidden_size))
        if text.softcap:
            cap = graph.scalar(text.softcap)
            logits = graph.mul(graph.op("Tanh", [graph.op("Div", [logits, cap])]), cap)
        graph.output(logits, "logits", FLOAT, [1, "kept_length", text.vocab_size])
