"""Checkpoints trained for phones (transformers' quant_method "gemma", the vendor's "qat-mobile"): 2, 4 and 8 bits.

    X.weight                 uint8 [N, K*bits/8], the first weight in the lowest bits, each 2^(bits-1) more than its
                             level, or int8 [N, K] at 8 bits; `module_quant_configs` says which module has how many
    X.weight_scale           float32 [N, 1]
    X.embedding_quantized    the same of a token embedding, X.embedding_scale float32 [V, groups]
    X.input_activation_scale, X.output_activation_scale    float32: the layer's input and output are rounded to its
                             multiples from -128 to 127. The model was trained with that and cuts off its outliers by
                             it, so graphs do the same; 0: neither is rounded
    lm_head.*                the token embedding once more, with activation scales of its own

Not read are k_cache_scale and v_cache_scale, which transformers leaves aside too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.grids import Packed, block_of, scales_for
from edge_runtime.export.quant import Format

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.export.safetensors import Checkpoint, Tensor

METHOD = "gemma"
_KINDS = {".weight": ".weight_scale", ".embedding_quantized": ".embedding_scale"}
_HEAD, _EMBEDDING = "lm_head", "embed_tokens"
_ACTIVATIONS = ("input_activation_scale", "output_activation_scale")
_ROWS = 1 << 14  # that are compared at a time


def adopt_mobile(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Puts grid tensors called X.weight in the place of the stored integers and their scales.

    Args:
        checkpoint: Opened.
        config: The quantization_config of its config.json.

    Raises:
        EdgeRuntimeError: shapes do not fit, or the output head is not the token embedding.
    """
    _untie(checkpoint)
    for name in list(checkpoint.names()):
        base, dot, kind = name.rpartition(".")
        scale = base + _KINDS.get(dot + kind, "?")
        if scale in checkpoint:
            stored = checkpoint.get(name)
            bits = 8 if stored.dtype == "I8" else _bits(base, config)
            checkpoint.replace(_grid(f"{base}.weight", stored, checkpoint.get(scale), bits), [name, scale])


def _bits(module: str, config: Mapping[str, Any]) -> int:
    """Those of the first pattern that the module's name has."""
    usual = config.get("num_bits", 4)
    for pattern, given in (config.get("module_quant_configs") or {}).items():
        if re.search(pattern, module):
            return int(given.get("num_bits", usual))
    return int(usual)


def _grid(name: str, stored: Tensor, scales: Tensor, bits: int) -> Packed:
    rows, width = stored.shape[0], stored.shape[-1] * (1 if stored.dtype == "I8" else 8 // max(1, bits))
    block = block_of(width, scales, rows)
    if len(stored.shape) != 2 or stored.dtype not in {"U8", "I8"} or bits not in {2, 4, 8} or not block:
        raise EdgeRuntimeError(
            f"{stored.file.name}: {name}, {bits} bits stored as {stored.dtype} {list(stored.shape)} with scales "
            f"{list(scales.shape)}, cannot be read"
        )
    kept: Literal["f32", "f16", "i8"] = "i8" if scales.shape[1] == 1 else scales_for(scales.read(), 0)
    form = Format(bits, block, kept)
    return Packed(name, scales.dtype, (rows, width), stored.file, stored.offset, form, stored, scales)


def _untie(checkpoint: Checkpoint) -> None:
    """Gives the token embedding the output head's activation scales, and drops the head, which must be the same."""
    if f"{_HEAD}.weight" not in checkpoint:
        return
    embedding = next((name for name in checkpoint.names() if name.endswith(f".{_EMBEDDING}.embedding_quantized")), "")
    base = embedding.removesuffix(".embedding_quantized")
    pairs = [(f"{_HEAD}.weight", embedding), (f"{_HEAD}.weight_scale", f"{base}.embedding_scale")]
    if not all(a in checkpoint and b in checkpoint and _same(checkpoint.get(a), checkpoint.get(b)) for a, b in pairs):
        raise EdgeRuntimeError(f"{checkpoint.folder}: its output head is not the token embedding")
    for name in _ACTIVATIONS:
        if f"{_HEAD}.{name}" in checkpoint:
            checkpoint.replace(checkpoint.get(f"{_HEAD}.{name}").called(f"{base}.{name}"), [f"{_HEAD}.{name}"])
    for name, _ in pairs:
        checkpoint.drop(name)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same."""
    starts = range(0, a.shape[0], _ROWS) if a.shape else ()
    return a.shape == b.shape and all(
        np.array_equal(a.stored(start, start + _ROWS), b.stored(start, start + _ROWS)) for start in starts
    )
