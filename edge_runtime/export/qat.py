"""Checkpoints whose matrices already lie on a grid: they are taken over level by level instead of being rounded again.

Three kinds are known, one of them in `mobile_qat`.

* compressed-tensors, format "pack-quantized" (w4a16): `X.weight_packed` int32 [N, K*bits/32], the first weight in the
  lowest bits, each 2^(bits-1) more than its level; `X.weight_scale` [N, K/group]; `X.weight_shape`. Symmetric.
* Q4_0 trained and stored "unquantized", as bfloat16 or float32: each block of 32 is d * q with q in -8..7. Either the
  products themselves are stored, then d and q are found again from their roundings; or the weights before rounding,
  which only the checkpoint's name tells ("qat-q4_0"), then they are rounded by Q4_0's own rule, the one they were
  trained with.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.grids import GridTensor, Packed, block_of, scales_for
from edge_runtime.export.mobile_qat import METHOD, adopt_mobile
from edge_runtime.export.quant import BLOCK, SLAB, Format, Grid, extremes
from edge_runtime.export.safetensors import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edge_runtime.export.safetensors import Checkpoint

_TRAINED = re.compile(r"qat.*q4_0", re.IGNORECASE)
_TOWERS = re.compile(r"(^|\.)((vision|audio)_tower|embed_(vision|audio))\.")  # only the decoder is trained so
_SAMPLE = 64  # rows that are looked at
_FEW = 64  # blocks of these that tell an ordinary checkpoint, which is what most are
_ON_GRID = 0.99  # of the sample's blocks must be on the grid

_ROOM = {"BF16": 2.0**-9}
"""By how much of itself a scale may move, because storing the products did worse: bfloat16 moves them by up to 2^-8."""

_FLOAT32_ROOM = 4  # last places that a product in float32 may be off

# Levels that a block's extreme may have, likeliest first: -8 by Q4_0's rule, 7 where scales are max/7 or max/7.5.
_TOPS = (-8, 7, -7, 6, -6, 5, -5, 4, -4, 3, -3, 2, -2, 1)


@dataclass(frozen=True)
class Q40(GridTensor):
    """Weights for Q4_0's grid, stored as numbers."""

    def grid(self, rows: NDArray[np.int64]) -> Grid:
        """See GridTensor."""
        values = self.take(rows)
        count, width = values.shape
        found = Grid(np.empty((count, width), np.int8), np.empty((count, width // BLOCK), np.float32))
        step = max(1, SLAB // width)
        for start in range(0, count, step):
            at = slice(start, start + step)
            levels, steps = self.levels(values[at].reshape(-1, BLOCK))
            found.levels[at] = levels.reshape(-1, width)
            found.steps[at] = steps.reshape(-1, width // BLOCK)
        return found

    def levels(self, blocks: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Levels [B, 32] and scales [B] of blocks [B, 32]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Products(Q40):
    """Levels times scales, stored as bfloat16 or float32."""

    def levels(self, blocks: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """See Q40. Blocks that are off the grid all the same are rounded by Q4_0's rule."""
        levels, steps, found = regrid(blocks, self.dtype)
        if not found.all():
            levels[~found], steps[~found] = q4_0(blocks[~found])
        return levels, steps


@dataclass(frozen=True)
class Trained(Q40):
    """Weights that were trained to be rounded by Q4_0's rule."""

    def levels(self, blocks: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """See Q40."""
        return q4_0(blocks)


def regrid(blocks: NDArray[np.float32], dtype: str) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.bool_]]:
    """Finds levels q in -8..7 and a scale d for each block so that every value is d * q as `dtype` rounds it.

    For the level t that the block's extreme m might have, all levels are the values over m / t, rounded; the scales
    that give all the values then are one interval, out of which a float16 is taken if it will do, for Q4_0 has such.

    Args:
        blocks: [B, 32].
        dtype: "BF16" or "F32".

    Returns:
        Levels [B, 32], scales [B], and which blocks have such [B].
    """
    levels = np.zeros(blocks.shape, np.int8)
    steps = np.zeros(len(blocks), np.float32)
    found: NDArray[np.bool_] = np.logical_not(blocks.any(-1))
    for top in _TOPS:
        rest = np.flatnonzero(~found)
        if not len(rest):
            break
        part = blocks[rest]
        unit = extremes(part) / np.float32(top)
        whole = np.clip(np.rint(part / unit[:, None]), -8, 7)
        middle = _middle(part, whole, dtype) * np.sign(unit)
        # Where products lie halfway between two stored values, only the very scale that was used gives them all.
        for scale in (middle.astype(np.float16).astype(np.float32), unit, middle):
            right = _same(whole * scale[:, None], part, dtype).all(-1) & ~found[rest]
            at = rest[right]
            levels[at], steps[at], found[at] = whole[right], scale[right], True
    return levels, steps, found


def q4_0(blocks: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds blocks [B, 32] as llama.cpp's quantize_row_q4_0_ref does: levels [B, 32], scales [B] of float16's."""
    scale = extremes(blocks) / np.float32(-8)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    levels = np.minimum(np.floor(blocks * inverse[:, None] + np.float32(8.5)), 15) - 8
    return levels.astype(np.int8), scale.astype(np.float16).astype(np.float32)


def adopt_grids(checkpoint: Checkpoint, config: Mapping[str, Any], names: str) -> bool:
    """Puts grid tensors in the place of those of the checkpoint's tensors that lie on a grid.

    Args:
        checkpoint: Opened.
        config: Its config.json.
        names: What it is called: folder, hub id.

    Returns:
        Whether each matrix was given the bits that it bears, so that no recipe should choose others.

    Raises:
        EdgeRuntimeError: it is quantized in a way that cannot be read.
    """
    quantized = config.get("quantization_config")
    if quantized is not None:
        mobile = bool(quantized.get("quant_method") == METHOD)
        (adopt_mobile if mobile else _adopt_packed)(checkpoint, quantized)
        return mobile
    trained = _TRAINED.search(names) is not None
    for name in list(checkpoint.names()):
        tensor = checkpoint.get(name)
        apart = _TOWERS.search(name) is not None
        if _may_lie_on_grid(tensor) and (native := _native(tensor, trained=trained and not apart)):
            kind, form = native
            given = {field.name: getattr(tensor, field.name) for field in fields(Tensor)}
            checkpoint.replace(kind(**given, native=form))
    return False


def _adopt_packed(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    kind, form = config.get("quant_method"), config.get("format")
    if (kind, form) != ("compressed-tensors", "pack-quantized"):
        raise EdgeRuntimeError(
            f"{checkpoint.folder}: weights stored as {form or kind} cannot be exported; unquantized ones, those of "
            'compressed-tensors\' pack-quantized and of the method "gemma" can'
        )
    suffix = "_packed"
    for name in [name for name in checkpoint.names() if name.endswith(suffix)]:
        base = name.removesuffix(suffix)
        parts = [name, f"{base}_scale", f"{base}_shape"]
        if f"{base}_zero_point" in checkpoint or f"{base}_g_idx" in checkpoint:
            raise EdgeRuntimeError(f"{checkpoint.folder}: {base} has zero points or a permutation; neither can be read")
        packed, scales = checkpoint.get(name), checkpoint.get(parts[1])
        rows, width = checkpoint.get(parts[2]).integers().tolist()
        checkpoint.replace(_packed(base, packed, scales, (rows, width)), parts)


def _packed(name: str, packed: Tensor, scales: Tensor, shape: tuple[int, int]) -> Packed:
    """Works out bits and group from the shapes, as groups of layers may differ in them."""
    rows, width = shape
    bits = next((bits for bits in (2, 4, 8) if packed.shape == (rows, -(-width * bits // 32))), 0)
    block = block_of(width, scales, rows)
    if not bits or not block:
        raise EdgeRuntimeError(
            f"{packed.file.name}: {name} [{rows}, {width}] is packed as {list(packed.shape)} with scales "
            f"{list(scales.shape)}; 2, 4 or 8 bits and groups of 32, 64 or 128 can be read"
        )
    form = Format(bits, block, scales_for(scales.read(), 0))
    return Packed(name, scales.dtype, shape, packed.file, packed.offset, form, packed, scales)


def _may_lie_on_grid(tensor: Tensor) -> bool:
    """Matrices, and the experts' [E, N, K]."""
    return len(tensor.shape) in {2, 3} and tensor.dtype in {"BF16", "F32"} and not tensor.shape[-1] % BLOCK


def _native(tensor: Tensor, *, trained: bool) -> tuple[type[GridTensor], Format] | None:
    """How the tensor lies on Q4_0's grid, by a sample of rows from all over it."""
    tensor = replace(tensor, shape=(math.prod(tensor.shape[:-1]), tensor.shape[-1]))
    rows = np.linspace(0, tensor.shape[0] - 1, min(_SAMPLE, tensor.shape[0])).astype(np.int64)
    blocks = np.concatenate([tensor.read(row, row + 1) for row in rows.tolist()]).reshape(-1, BLOCK)
    _, steps, found = regrid(blocks[:_FEW], tensor.dtype)
    if found.mean() > 1 / 2:
        _, steps, found = regrid(blocks, tensor.dtype)
    if found.mean() < _ON_GRID or not blocks.any():
        return (Trained, Format(4, BLOCK, "f16")) if trained else None
    return Products, Format(4, BLOCK, scales_for(steps[found], _ROOM.get(tensor.dtype, 0)))


def _middle(blocks: NDArray[np.float32], levels: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """The middle of the interval of scales (without their signs) that give `blocks` with these levels: [B]."""
    bits = np.abs(blocks).view(np.uint32)
    half = np.uint32(0x8000 if dtype == "BF16" else _FLOAT32_ROOM)
    size = np.maximum(np.abs(levels), 1)
    used = levels != 0
    low = np.where(used, (bits - np.minimum(half, bits)).view(np.float32) / size, 0).max(-1)
    high = np.where(used, (bits + half).view(np.float32) / size, np.inf).min(-1)
    middle: NDArray[np.float32] = (low + high) / 2
    return middle


def _same(values: NDArray[np.float32], stored: NDArray[np.float32], dtype: str) -> NDArray[np.bool_]:
    """Whether values are those that `dtype` stores."""
    same: NDArray[np.bool_]
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        # Half to even.
        rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        same = (rounded & np.uint32(0xFFFF0000)).view(np.float32) == stored
    else:
        same = np.abs(values - stored) <= _FLOAT32_ROOM * np.spacing(np.abs(stored))
    return same
