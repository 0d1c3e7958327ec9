"""How the values of a table's row become bytes, and back.

At 8 and 4 bits a row is a factor and then its blocks, each a scale and its values:
    factor  float32
    block   scale int8, then `block` values: int8, or two a byte at 4 bits (the earlier one low, stored + 8)
so any number of leading columns is one run of bytes. A value stands for
    value * scale * |scale| * factor
Scales are stored as square roots because the blocks of a row differ by orders of magnitude: eight bits then hold the
largest to 0.5 % and one of a hundredth of it to 5 %, where in equal steps that one would be 25 % off.
At 32 bits a row is its float32 values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle.scales import best_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.bundle.tables import TableSpec

FACTOR_BYTES = 4
_ROOT = 127  # the largest scale as stored
_STEP = 1 << 16  # values dealt with at a time: what stays in a core's cache

# Levels that the value of largest magnitude is tried at. -8 is Q4_0's rule; at more than that it is cut off for the
# others' sake; at 7 the grid is that of symmetric quantisers.
_TOP_LEVELS = (-8.0, -8.8, -7.0)

_NIBBLES = np.stack([np.arange(256) % 16 - 8, np.arange(256) // 16 - 8], 1).astype(np.float32)
# One lookup gives both values of a byte.
_PAIRS = _NIBBLES.view(np.complex64)[:, 0]


def block_bytes(bits: int, block: int) -> int:
    """Bytes of a block at 8 or 4 bits."""
    return 1 + block * bits // 8


def prefix_bytes(spec: TableSpec, columns: int) -> int:
    """Bytes at the beginning of a row that hold its first `columns` (whole blocks)."""
    if spec.bits == 32:
        return 4 * columns
    return FACTOR_BYTES + columns // spec.block * block_bytes(spec.bits, spec.block)


def decode(rows: NDArray[np.uint8], spec: TableSpec, start: int, stop: int) -> NDArray[np.float32]:
    """Columns start..stop (whole blocks) of rows of which at least `prefix_bytes(stop)` are given.

    Args:
        rows: [n, bytes], contiguous.
        spec: Of the table.
        start: First column.
        stop: The column after the last.

    Returns:
        float32 [n, stop - start], times the table's multiplier.
    """
    count, multiplier = len(rows), np.float32(spec.multiplier)
    first, last = prefix_bytes(spec, start), prefix_bytes(spec, stop)
    if spec.bits == 32:
        return np.ascontiguousarray(rows[:, first:last]).view(np.float32) * multiplier
    blocks = rows[:, first:last].reshape(count, (stop - start) // spec.block, block_bytes(spec.bits, spec.block))
    roots = blocks[:, :, 0].view(np.int8).astype(np.float32)
    factors = np.ascontiguousarray(rows[:, :FACTOR_BYTES]).view(np.float32) * multiplier
    if spec.bits == 8:
        values = blocks[:, :, 1:].view(np.int8).astype(np.float32)
    else:
        values = _PAIRS[blocks[:, :, 1:]].view(np.float32)
    values *= (roots * np.abs(roots) * factors)[:, :, None]
    return values.reshape(count, stop - start)


def encode(
    values: NDArray[np.float32], spec: TableSpec, scales: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """The rows [n, row_bytes] that hold `values` [n, dim]; pure, so several threads may encode at once.

    At 4 bits each block's scale is the best of a few, each followed by its least-squares fit (as llama.cpp's
    `make_qx_quants` does for its 4-bit types), and the largest value may take the level -8 that has no positive twin.
    `scales` [n, dim/block], where they are known, are taken instead.
    """
    rows = np.zeros((len(values), spec.row_bytes), np.uint8)
    if spec.bits == 32:
        rows[:, : 4 * spec.dim] = np.ascontiguousarray(values, np.float32).view(np.uint8)
        return rows
    step = max(1, _STEP // spec.dim)
    for start in range(0, len(values), step):
        at = slice(start, start + step)
        known = None if scales is None else scales[at].reshape(-1)
        _encode(np.ascontiguousarray(values[at], np.float32), spec, rows[at], known)
    return rows


def _encode(
    values: NDArray[np.float32], spec: TableSpec, rows: NDArray[np.uint8], scales: NDArray[np.float32] | None
) -> None:
    count = len(values)
    blocks = values.reshape(-1, spec.block)
    if scales is None:
        scales = best_scales(blocks, 4, _TOP_LEVELS) if spec.bits == 4 else np.abs(blocks).max(-1) / np.float32(127)
    by_row = scales.reshape(count, -1)
    factors = np.abs(by_row).max(-1, keepdims=True) / np.float32(_ROOT**2)
    factors[factors == 0] = 1
    roots = np.sqrt(np.abs(by_row) / factors)
    # At 8 bits a scale rounded down would cut off the largest value.
    roots = np.copysign(np.minimum(np.ceil(roots) if spec.bits == 8 else np.rint(roots), _ROOT), by_row)
    # Rounding to the scale as it is stored, so that its own rounding is not added on top.
    stored = (roots * np.abs(roots) * factors).reshape(-1, 1)
    stored[stored == 0] = np.inf
    whole = np.rint(blocks / stored)
    end = prefix_bytes(spec, spec.dim)
    rows[:, :FACTOR_BYTES] = factors.view(np.uint8)
    cells = rows[:, FACTOR_BYTES:end].reshape(count, -1, block_bytes(spec.bits, spec.block))
    cells[:, :, 0] = roots.astype(np.int8).view(np.uint8)
    if spec.bits == 8:
        packed = np.clip(whole, -127, 127).astype(np.int8).view(np.uint8)
    else:
        nibbles = (np.clip(whole, -8, 7) + 8).astype(np.uint8)
        packed = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    cells[:, :, 1:] = packed.reshape(count, -1, packed.shape[1])
    rows[:, FACTOR_BYTES:end] = cells.reshape(count, -1)
