"""The scale of a block of weights that loses least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def best_scales(
    blocks: NDArray[np.float32], bits: int, tops: Sequence[float], importance: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """The scale of each block whose rounding to levels -2^(bits-1) to 2^(bits-1) - 1 errs least, in squares.

    For each of `tops` the value of largest magnitude is put on that level, all are rounded, and the scale is fitted to
    the levels by least squares (as llama.cpp's `make_qx_quants` does).

    Args:
        blocks: [B, block].
        bits: 2, 4 or 8.
        tops: Levels to try; one beyond the lowest is cut off for the others' sake.
        importance: What a squared error counts, [B, block]; left out, all the same.

    Returns:
        Scales [B], 0 for blocks of zeros.
    """
    middle = 1 << (bits - 1)
    at = np.abs(blocks).argmax(-1)[:, None]
    extreme = np.take_along_axis(blocks, at, -1)
    extreme[extreme == 0] = 1
    best = np.zeros(len(blocks), np.float32)
    reached = np.full(len(blocks), -1, np.float32)
    levels = np.empty_like(blocks)
    weighed = blocks if importance is None else blocks * importance
    for top in tops:
        np.rint(np.multiply(blocks, np.float32(top) / extreme, out=levels), out=levels)
        np.clip(levels, -middle, middle - 1, out=levels)
        along = np.einsum("ij,ij->i", levels, weighed)
        squares = (levels, levels) if importance is None else (levels, levels, importance)
        norm = np.einsum(",".join(["ij"] * len(squares)) + "->i", *squares)
        scales = np.divide(along, norm, out=np.zeros_like(along), where=norm > 0)
        # |blocks - scale * levels|^2 = |blocks|^2 - along * scale at the least-squares scale.
        better = along * scales > reached
        best[better], reached[better] = scales[better], (along * scales)[better]
    return best
