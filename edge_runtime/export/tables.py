"""Writes the token embedding and the per-layer embedding as bundle tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.bundle.rows import decode, encode
from edge_runtime.bundle.shared_table import SharedSpec
from edge_runtime.bundle.tables import TableSpec, write_table
from edge_runtime.export.grids import GridTensor
from edge_runtime.export.parallel import map_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.bundle.checksums import Measured
    from edge_runtime.export.graph import Graph
    from edge_runtime.export.parallel import Pace
    from edge_runtime.export.safetensors import Tensor
    from edge_runtime.export.weights import Weights
    from edge_runtime.gemma.geometry import TextGeometry

    Tick = Callable[[int], None]

_FINE, _COARSE = 32, 64  # values that share a scale
_SAMPLE = 64  # rows that are looked at to choose between the two
_ON_GRID = 0.5


def write_embedding(
    folder: Path, weights: Weights, text: TextGeometry, bits: int, pace: Pace, tick: Tick
) -> tuple[TableSpec, Measured]:
    """embed_tokens [V, H], times sqrt(H) as the checkpoint's dtype holds that number."""
    tensor = weights.tensor("embed_tokens.weight", text.vocab_size, text.hidden_size)
    multiplier = tensor.round(math.sqrt(text.hidden_size))
    return _write(folder / names.EMBED_TABLE, tensor, bits, text.hidden_size, multiplier, pace, tick)


def shared_spec(graph: Graph, weights: Weights, text: TextGeometry) -> SharedSpec | None:
    """The token embedding as it lies in the finished decoder's head; None where that is not rounded."""
    tensor = weights.tensor("embed_tokens.weight", text.vocab_size, text.hidden_size)
    places = graph.places.get(tensor.name)
    if places is None:
        return None
    form, factors = places.format, places.factors
    return SharedSpec(
        names.data_file(graph.file),
        text.vocab_size,
        text.hidden_size,
        form.bits,
        form.block,
        form.scales,
        places.packed.offset,
        places.scales.offset,
        factors.offset if factors else 0,
        tensor.round(math.sqrt(text.hidden_size)),
    )


def write_per_layer_embedding(
    folder: Path, weights: Weights, text: TextGeometry, bits: int, pace: Pace, tick: Tick
) -> tuple[TableSpec, Measured]:
    """embed_tokens_per_layer [V, layers * P], times sqrt(P) and the 2^-0.5 of the mixing that follows it."""
    width = text.num_layers * text.ple_dim
    tensor = weights.tensor("embed_tokens_per_layer.weight", text.ple_vocab_size, width)
    multiplier = tensor.round(math.sqrt(text.ple_dim)) * 2**-0.5
    # The engine reads the own layers' columns apart from the rest, so a block must not straddle two layers.
    return _write(folder / names.PLE_TABLE, tensor, bits, text.ple_dim, multiplier, pace, tick)


def _write(
    path: Path, tensor: Tensor, bits: int, unit: int, multiplier: float, pace: Pace, tick: Tick
) -> tuple[TableSpec, Measured]:
    """`unit`: columns that blocks must divide."""
    spec = choose_spec(tensor, bits, unit, multiplier)
    rows = map_rows((spec.rows, spec.dim), lambda start, stop: _encoded(tensor, spec, start, stop), pace, tick)
    return spec, write_table(path, spec, (encoded for _, encoded in rows))


def _encoded(tensor: Tensor, spec: TableSpec, start: int, stop: int) -> NDArray[np.uint8]:
    """Rows as they are stored; on the grid that the tensor lies on, if the table has as many levels."""
    if not (isinstance(tensor, GridTensor) and _holds(tensor, spec.bits)):
        return encode(tensor.read(start, stop), spec)
    grid = tensor.grid(np.arange(start, stop))
    return encode(grid.values(), spec, np.repeat(grid.steps, tensor.native.block // spec.block, axis=1))


def _holds(tensor: GridTensor, bits: int) -> bool:
    return bits == 4 >= tensor.native.bits


def choose_spec(tensor: Tensor, bits: int, unit: int, multiplier: float) -> TableSpec:
    """How to store a table: 32 bits where its columns cannot be cut into blocks, else blocks of 64 or of 32.

    Blocks of 32 err a tenth less at 4 bits but make rows 3 % longer, which at E2B is a row in six pages less. They are
    taken where they cost no more disk, and where the values were trained to lie on such blocks' grid, which any other
    would miss.
    """
    rows, dim = tensor.shape

    if bits == 32 or unit % 2:
        return TableSpec.make(rows=rows, dim=dim, bits=32, multiplier=multiplier)
    if isinstance(tensor, GridTensor) and _holds(tensor, bits):
        block = math.gcd(unit, tensor.native.block)
        return TableSpec.make(rows=rows, dim=dim, bits=bits, block=block, multiplier=multiplier)
    fine, coarse = (
        TableSpec.make(rows=rows, dim=dim, bits=bits, block=math.gcd(unit, block), multiplier=multiplier)
        for block in (_FINE, _COARSE)
    )
    if fine.size <= coarse.size or (bits == 4 and _error(tensor, fine) < _ON_GRID * _error(tensor, coarse)):
        return fine
    return coarse


def _error(tensor: Tensor, spec: TableSpec) -> float:
    """Root mean square error of some rows, from all over the table."""
    sample = np.linspace(0, spec.rows - 1, min(_SAMPLE, spec.rows)).astype(int).tolist()
    values = np.concatenate([tensor.read(row, row + 1) for row in sample])
    stored = decode(encode(values, spec), spec, 0, spec.dim) / np.float32(spec.multiplier)
    return float(np.sqrt(np.square(stored - values).mean()))
