"""Heads of GGUF files, made by hand: what the reader reads, and the planner plans with, needs no weights."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from edge_runtime.engine.llama.metadata import Gguf, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GB = 10**9
TURN = ("<|turn>", "<turn|>")


def head(values: Mapping[str, Any], tensors: Sequence[tuple[str, tuple[int, ...], int, int]] = ()) -> bytes:
    """A file's beginning: tensors as (name, shape, type, offset)."""
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, value in values.items():
        data += _text(key) + _value(value)
    for name, shape, kind, offset in tensors:
        data += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return data + bytes(-len(data) % 32)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def moe(path: Path, *, layers: int = 30, expert: int = 400_000_000, rest: int = 30_000_000) -> Gguf:
    """A model in the shape of 26B A4B with layers of these sizes."""
    values = {
        "general.architecture": "gemma4",
        "gemma4.block_count": layers,
        "gemma4.embedding_length": 2816,
        "gemma4.context_length": 262144,
        "gemma4.attention.head_count": 16,
        "gemma4.attention.head_count_kv": [2 if i % 6 == 5 else 8 for i in range(layers)],
        "gemma4.attention.key_length": 512,
        "gemma4.attention.value_length": 512,
        "gemma4.attention.key_length_swa": 256,
        "gemma4.attention.value_length_swa": 256,
        "gemma4.attention.sliding_window": 1024,
        "gemma4.attention.sliding_window_pattern": [i % 6 != 5 for i in range(layers)],
        "tokenizer.ggml.tokens": [f"w{i}" for i in range(1000)],
    }
    tensors = [Tensor("token_embd.weight", (2816, 1000), "Q6_K", 600_000_000)]
    for i in range(layers):
        tensors.append(Tensor(f"blk.{i}.ffn_gate_up_exps.weight", (1,), "Q4_0", expert))
        tensors.append(Tensor(f"blk.{i}.attn_q.weight", (1,), "Q4_0", rest))
    return Gguf(path, values, tuple(tensors), sum(tensor.size for tensor in tensors))
