"""Writes small random checkpoints with numpy alone."""

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
    """Writes float arrays as `dtype` (F32, F16 or BF16), bytes and int32 as they are and other integers as I64."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name, array in tensors.items():
        if np.issubdtype(array.dtype, np.integer):
            # uint16 holds bfloat16 that is rounded already.
            kind = {"uint16": "BF16", "int32": "I32", "uint8": "U8", "int8": "I8"}.get(array.dtype.name, "I64")
            data = array.astype(np.int64) if kind == "I64" else array
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
        bare: dict[str, tuple[int, ...]] = {"layer_scalar": (1,)}
        if count := text.num_experts:
            norms += ["pre_feedforward_layernorm_2", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2"]
            layer["router.proj"] = (count, hidden)
            bare |= {"router.scale": (hidden,), "router.per_expert_scale": (count,)}
            bare["experts.gate_up_proj"] = (count, 2 * text.expert_width, hidden)
            bare["experts.down_proj"] = (count, hidden, text.expert_width)
        layer |= dict.fromkeys(norms, (hidden,))
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in bare.items()}
    tensors = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            noise = (0.3 if "q_norm" in name else 1.0) * (1 + 0.2 * noise)
        else:
            noise *= 0.3 if "embed" in name else 1.0 if "router" in name else 1 / math.sqrt(shape[-1])
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
