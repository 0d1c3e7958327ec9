"""A tokenizer of Gemma's kind, small enough to be built in a test: BPE over letters, bytes for everything else."""

from __future__ import annotations

import string
from typing import Any

from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from edge_runtime.gemma.tokenizer import Tokenizer

CONTROLS = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|image>", "<|image|>", "<image|>", "<|audio>"),
    *("<|audio|>", "<audio|>", "<|channel>", "<channel|>", "<|think|>", '<|"|>', "<|tool>", "<tool|>"),
    *("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
)
CONFIG: dict[str, Any] = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "tokenizer_class": "GemmaTokenizer"}


def backend() -> Backend:
    pieces = [*CONTROLS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.ascii_letters, "th", "▁th", "▁the"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e")]
    tokenizer = Backend(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROLS])
    return tokenizer


def tokenizer() -> Tokenizer:
    return Tokenizer(backend(), CONFIG)
