"""Writes small random checkpoints with numpy alone, and runs them with numpy alone."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.gemma.geometry import FULL, SLIDING, Geometry

if TYPE_CHECKING:
    from pathlib import Path

CONFIG: dict[str, Any] = {
    "model_type": "gemma4_text",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "layer_types": [SLIDING, FULL] * 3,
    "sliding_window": 6,
    "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 96,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}


def to_bf16(array: Any) -> Any:
    """Rounds to bfloat16: uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: dict[str, Any], dtype: str = "F32") -> None:
    """Writes float arrays as `dtype` (F32, F16 or BF16) and integer arrays as I64."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name, array in tensors.items():
        if np.issubdtype(array.dtype, np.integer):
            # uint16 holds bfloat16 that is rounded already.
            kind, data = ("BF16", array) if array.dtype == np.uint16 else ("I64", array.astype(np.int64))
        else:
            kind = dtype
            data = {"F32": lambda a: a.astype(np.float32), "F16": lambda a: a.astype(np.float16), "BF16": to_bf16}[
                dtype
            ](array)
        blob = data.tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(blobs))


def decoder_tensors(geometry: Geometry, seed: int = 0, prefix: str = "model.") -> dict[str, Any]:
    """Random weights of a decoder."""
    rng = np.random.default_rng(seed)
    text = geometry.text
    hidden, ple = text.hidden_size, text.ple_dim
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (text.vocab_size, hidden), "norm.weight": (hidden,)}
    if ple:
        shapes["embed_tokens_per_layer.weight"] = (text.ple_vocab_size, text.num_layers * ple)
        shapes["per_layer_model_projection.weight"] = (text.num_layers * ple, hidden)
        shapes["per_layer_projection_norm.weight"] = (ple,)
    for i in range(text.num_layers):
        dim, kv, mlp = text.head_dims[i], text.kv_heads[i], text.mlp_widths[i]
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (text.num_heads * dim, hidden),
            # Shared layers keep theirs too, as published checkpoints do; nothing reads them.
            "self_attn.k_proj": (kv * dim, hidden),
            "self_attn.v_proj": (kv * dim, hidden),
            "self_attn.o_proj": (hidden, text.num_heads * dim),
            "self_attn.q_norm": (dim,),
            "self_attn.k_norm": (dim,),
            "mlp.gate_proj": (mlp, hidden),
            "mlp.up_proj": (mlp, hidden),
            "mlp.down_proj": (hidden, mlp),
        }
        norms = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm"]
        norms.append("post_feedforward_layernorm")
        if ple:
            layer["per_layer_input_gate"] = (ple, hidden)
            layer["per_layer_projection"] = (hidden, ple)
            norms.append("post_per_layer_input_norm")
        layer |= dict.fromkeys(norms, (hidden,))
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes[f"layers.{i}.layer_scalar"] = (1,)
    tensors = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            noise = (0.3 if "q_norm" in name else 1.0) * (1 + 0.2 * noise)
        else:
            noise *= 0.3 if "embed" in name else 1 / math.sqrt(shape[-1])
        tensors[prefix + name] = noise
    return tensors


def write_checkpoint(folder: Path, *, dtype: str = "F32", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A decoder-only checkpoint folder; the result is its tensors."""
    folder.mkdir(parents=True)
    config = {**CONFIG, **changes}
    tensors = decoder_tensors(Geometry.from_config(config), seed)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", tensors, dtype)
    return tensors


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


def forward(tensors: dict[str, Any], config: dict[str, Any], ids: Any) -> Any:
    """Logits [T, V] of Gemma 4's decoder in float64, written from its description and not from the exporter."""
    text = Geometry.from_config(config).text
    w = {name.removeprefix("model."): tensor.astype(np.float64) for name, tensor in tensors.items()}
    x = w["embed_tokens.weight"][ids] * math.sqrt(text.hidden_size)
    count, layers, ple = len(ids), text.num_layers, text.ple_dim
    if ple:
        token = w["embed_tokens_per_layer.weight"][ids].reshape(count, layers, ple) * math.sqrt(ple)
        context = x @ w["per_layer_model_projection.weight"].T * text.hidden_size**-0.5
        context = rms(context.reshape(count, layers, ple), w["per_layer_projection_norm.weight"])
        per_layer = (context + token) * 2**-0.5
    query, key = np.arange(count)[:, None], np.arange(count)[None, :]
    kept: dict[int, tuple[Any, Any]] = {}
    for i in range(layers):

        def m(name: str, layer: int = i) -> Any:
            return w[f"layers.{layer}.{name}.weight"]

        dim, full = text.head_dims[i], text.is_full(i)
        theta = text.rope_theta_full if full else text.rope_theta_sliding
        pairs = dim // 8 if full else dim // 2  # partial_rotary_factor 0.25
        y = rms(x, m("input_layernorm"))
        q = rms((y @ m("self_attn.q_proj").T).reshape(count, -1, dim), m("self_attn.q_norm"))
        if text.kv_sources[i] == i:
            k = rms((y @ m("self_attn.k_proj").T).reshape(count, -1, dim), m("self_attn.k_norm"))
            v = rms((y @ m("self_attn.v_proj").T).reshape(count, -1, dim))
            kept[i] = turn(k, theta, pairs), v
        k, v = (np.repeat(t, text.num_heads // text.kv_heads[i], 1) for t in kept[text.kv_sources[i]])
        scores = np.einsum("qhd,khd->hqk", turn(q, theta, pairs), k)
        seen = (key <= query) & (full | (key > query - text.sliding_window))
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", weights, v).reshape(count, -1) @ m("self_attn.o_proj").T
        x = x + rms(attended, m("post_attention_layernorm"))
        y = rms(x, m("pre_feedforward_layernorm"))
        y = (gelu(y @ m("mlp.gate_proj").T) * (y @ m("mlp.up_proj").T)) @ m("mlp.down_proj").T
        x = x + rms(y, m("post_feedforward_layernorm"))
        if ple:
            y = (gelu(x @ m("per_layer_input_gate").T) * per_layer[:, i]) @ m("per_layer_projection").T
            x = x + rms(y, m("post_per_layer_input_norm"))
        x = x * w[f"layers.{i}.layer_scalar"]
    logits = rms(x, w["norm.weight"]) @ w["embed_tokens.weight"].T
    return text.softcap * np.tanh(logits / text.softcap) if text.softcap else logits
