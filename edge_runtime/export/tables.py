"""Writes the token embedding and the per-layer embedding as bundle tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edge_runtime.bundle import names
from edge_runtime.bundle.tables import TableSpec, write_table
from edge_runtime.export.matrix import Stored, chunks
from edge_runtime.export.quant import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.export.safetensors import Tensor
    from edge_runtime.export.weights import Weights
    from edge_runtime.gemma.geometry import TextGeometry

    Tick = Callable[[int], None]


def write_embedding(folder: Path, weights: Weights, text: TextGeometry, bits: int, tick: Tick) -> TableSpec:
    """embed_tokens [V, H], times sqrt(H) as the checkpoint's dtype holds that number."""
    tensor = weights.tensor("embed_tokens.weight", text.vocab_size, text.hidden_size)
    return _write(folder / names.EMBED_TABLE, tensor, bits, BLOCK, tensor.round(math.sqrt(text.hidden_size)), tick)


def write_per_layer_embedding(folder: Path, weights: Weights, text: TextGeometry, bits: int, tick: Tick) -> TableSpec:
    """embed_tokens_per_layer [V, layers * P], times sqrt(P) and the 2^-0.5 of the mixing that follows it."""
    width = text.num_layers * text.ple_dim
    tensor = weights.tensor("embed_tokens_per_layer.weight", text.ple_vocab_size, width)
    # The engine reads the own layers' columns apart from the rest, so a block must not straddle two layers.
    block = math.gcd(text.ple_dim, BLOCK)
    return _write(folder / names.PLE_TABLE, tensor, bits, block, tensor.round(math.sqrt(text.ple_dim)) * 2**-0.5, tick)


def _write(path: Path, tensor: Tensor, bits: int, block: int, multiplier: float, tick: Tick) -> TableSpec:
    rows, dim = tensor.shape
    if dim % block or block % 2:
        bits = 32
    spec = TableSpec.make(rows=rows, dim=dim, bits=bits, block=block, multiplier=multiplier)
    write_table(path, spec, (values for _, values in chunks(Stored(tensor), tick)))
    return spec
