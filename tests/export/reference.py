"""Gemma 4's decoder in numpy, in float64, written from its description and not from the exporter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.gemma.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Sequence


def rms(x: Any, weight: Any = 1.0, eps: float = 1e-6) -> Any:
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * weight


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def turn(x: Any, theta: float, pairs: int) -> Any:
    """rotate_half over the whole head [T, heads, dim]; the frequencies of pairs past `pairs` are 0."""
    half = x.shape[-1] // 2
    frequencies = np.where(np.arange(half) < pairs, theta ** (-np.arange(half) / half), 0.0)
    angle = np.arange(len(x))[:, None, None] * frequencies
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def softmax(x: Any) -> Any:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def forward(
    tensors: dict[str, Any],
    config: dict[str, Any],
    ids: Any,
    *,
    images: Sequence[tuple[int, int]] = (),
    embeds: Any = None,
) -> Any:
    """Logits [T, V].

    `images`: first and end of the runs of tokens that see each other; `embeds` [T, H]: scaled rows of the embedding,
    if not those of `tensors`, which the head is made of.
    """
    text = Geometry.from_config(config).text
    w = {name.removeprefix("model."): tensor.astype(np.float64) for name, tensor in tensors.items()}
    x = w["embed_tokens.weight"][ids] * math.sqrt(text.hidden_size) if embeds is None else embeds
    count, layers, ple = len(ids), text.num_layers, text.ple_dim
    if ple:
        tokens = w["embed_tokens_per_layer.weight"][ids] * math.sqrt(ple)
        context = (x @ w["per_layer_model_projection.weight"].T * text.hidden_size**-0.5).reshape(count, layers, ple)
        context = rms(context, w["per_layer_projection_norm.weight"])
        per_layer = (context + tokens.reshape(count, layers, ple)) * 2**-0.5
    kept: dict[int, tuple[Any, Any]] = {}
    for i in range(layers):

        def m(name: str, layer: int = i) -> Any:
            return w[f"layers.{layer}.{name}.weight"]

        def p(name: str, x: Any, layer: int = i) -> Any:
            return x @ m(name, layer).T

        dim, full, kind = text.head_dims[i], text.is_full(i), text.layer_types[i]
        theta, pairs = text.rope_theta_full if full else text.rope_theta_sliding, text.rotated_pairs(kind)
        y = rms(x, m("input_layernorm"))
        q = rms(p("self_attn.q_proj", y).reshape(count, -1, dim), m("self_attn.q_norm"))
        if text.kv_sources[i] == i:
            k = p("self_attn.k_proj", y).reshape(count, -1, dim)
            v = k if full and text.k_eq_v else p("self_attn.v_proj", y).reshape(count, -1, dim)
            kept[i] = turn(rms(k, m("self_attn.k_norm")), theta, pairs), rms(v)
        k, v = (np.repeat(t, text.num_heads // text.kv_heads[i], 1) for t in kept[text.kv_sources[i]])
        scores = np.einsum("qhd,khd->hqk", turn(q, theta, pairs), k)
        seen = seen_keys(count, None if full else text.sliding_window, images)
        attended = np.einsum("hqk,khd->qhd", softmax(np.where(seen, scores, -np.inf)), v)
        x = x + rms(p("self_attn.o_proj", attended.reshape(count, -1)), m("post_attention_layernorm"))
        y = rms(x, m("pre_feedforward_layernorm"))
        y = p("mlp.down_proj", gelu(p("mlp.gate_proj", y)) * p("mlp.up_proj", y))
        if text.num_experts:
            y = rms(y, m("post_feedforward_layernorm_1"))
            chosen = experts(w, f"layers.{i}.", x, rms(x, m("pre_feedforward_layernorm_2")), text)
            y = y + rms(chosen, m("post_feedforward_layernorm_2"))
        x = x + rms(y, m("post_feedforward_layernorm"))
        if ple:
            y = p("per_layer_projection", gelu(p("per_layer_input_gate", x)) * per_layer[:, i])
            x = x + rms(y, m("post_per_layer_input_norm"))
        x = x * w[f"layers.{i}.layer_scalar"]
    logits = rms(x, w["norm.weight"]) @ w["embed_tokens.weight"].T
    return text.softcap * np.tanh(logits / text.softcap) if text.softcap else logits


def seen_keys(count: int, window: int | None, images: Sequence[tuple[int, int]]) -> Any:
    """Which keys [T, T] each query sees; the tokens of an image see each other, but on sliding layers (`window`)."""
    query, key = np.arange(count)[:, None], np.arange(count)[None, :]
    seen = key <= query
    if window is None:
        return seen
    for first, end in images:
        seen |= (first <= query) & (query < end) & (first <= key) & (key < end)
    return seen & (key > query - window)


def experts(w: dict[str, Any], prefix: str, router_input: Any, x: Any, text: Any) -> Any:
    """Each token's weighted sum of the outputs of its experts, one token and one expert after the other."""
    scores = rms(router_input) * w[f"{prefix}router.scale"] * text.hidden_size**-0.5
    likely = softmax(scores @ w[f"{prefix}router.proj.weight"].T)
    out = np.zeros_like(x)
    for token, row in enumerate(likely):
        best = np.argsort(-row)[: text.experts_per_token]
        shares = row[best] / row[best].sum() * w[f"{prefix}router.per_expert_scale"][best]
        for expert, share in zip(best, shares, strict=True):
            gate, up = np.split(w[f"{prefix}experts.gate_up_proj"][expert] @ x[token], 2)
            out[token] += share * (w[f"{prefix}experts.down_proj"][expert] @ (gelu(gate) * up))
    return out
