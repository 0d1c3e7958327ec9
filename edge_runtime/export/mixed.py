"""Mixed bits: gives each matrix of a decoder its format so that a number of bytes does the least harm.

Every matrix has a few formats to choose from. What one of them costs is

    role's weight * (norm of the rounding error / norm of the matrix)^2

with the error taken from a sample of rows. Bytes are those of memory, where a kernel keeps two float32 for each block:
they are what a box has least of, and what a token takes time to read. Relative errors may be compared because each
block of Gemma 4 ends in a norm: what a matrix adds to the stream is as large as that norm's weight, whatever the
matrix's own scale. How much an equal error in different places changes the answers was measured once, on the built-in
model (`WEIGHTS`). From the smallest formats on, bytes then go where they save most, as long as there are any.
"""

from __future__ import annotations

import heapq
import re
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.export.quant import Format, quantize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_runtime.export.matrix import Matrix

CHOICES = (
    Format(2, 128, "i8"),
    Format(2, 64, "i8"),
    Format(4, 128, "i8"),
    Format(4, 64, "i8"),
    Format(4, 32, "i8"),
    Format(8, 128, "i8"),
)

_SAMPLE = 48  # rows of a matrix that are rounded to find out how it bears it

WEIGHTS: Mapping[str, float] = {
    r"embed_tokens": 28.0,
    r"k_proj": 9.0,
    r"q_proj": 2.7,
    r"o_proj": 0.95,
    r"down_proj": 1.0,
    r"gate_proj": 0.65,
    r"up_proj": 0.55,
    r"per_layer_model_projection": 0.55,
    r"per_layer_": 0.5,
}
"""Thousandths of a nat of KL divergence that rounding a role's matrices to 2 bits gave, over the sum of their squared
relative errors (`python -m benchmarks.roles`). The first pattern that a name has counts; k_proj stands for queries,
keys and values in one matrix. Of embed_tokens, 16 are the head's and 12 those of the rows that it gives to tokens."""


def deal(matrices: Sequence[Matrix], total: int) -> dict[str, Format]:
    """Chooses formats.

    Args:
        matrices: Those of the decoder. One that lies on a grid of its own keeps that.
        total: Bytes of memory for all of them together; if even the smallest formats take more, they are chosen.

    Returns:
        The format of each matrix, by its name.
    """
    ladders = [_ladder(matrix) for matrix in matrices]
    place = [0] * len(ladders)
    left = total - sum(ladder[0][0] for ladder in ladders)
    waiting = [(_worth(ladder, 0), index) for index, ladder in enumerate(ladders) if len(ladder) > 1]
    heapq.heapify(waiting)
    while waiting:
        _, index = heapq.heappop(waiting)
        ladder, step = ladders[index], place[index]
        extra = ladder[step + 1][0] - ladder[step][0]
        if extra > left:
            continue
        left -= extra
        place[index] += 1
        if step + 2 < len(ladder):
            heapq.heappush(waiting, (_worth(ladder, step + 1), index))
    return {matrix.name: ladders[index][place[index]][2] for index, matrix in enumerate(matrices)}


def role_weight(name: str) -> float:
    """What an error in the matrix called `name` counts."""
    return next((weight for pattern, weight in WEIGHTS.items() if re.search(pattern, name)), 1.0)


def _worth(ladder: Sequence[tuple[int, float, Format]], step: int) -> float:
    """Minus what the next step saves for each byte, for a heap gives the smallest first."""
    (size, cost, _), (larger, less, _) = ladder[step], ladder[step + 1]
    return (less - cost) / (larger - size)


def _ladder(matrix: Matrix) -> list[tuple[int, float, Format]]:
    """The matrix's formats worth having, by size: bytes, cost, format; each step saves less a byte than the last."""
    count, width = matrix.shape
    if matrix.native:
        return [(count * matrix.native.kernel_bytes(width), 0.0, matrix.native)]
    rows = np.linspace(0, count - 1, min(_SAMPLE, count)).astype(int).tolist()
    sample = np.concatenate([matrix.rows(row, row + 1) for row in rows])
    options = []
    for form in dict.fromkeys(choice.fitting(width) for choice in CHOICES):
        error = 0.0
        if form.bits != 32:
            rounded = quantize(sample, form)
            error = rounded.lost / rounded.whole if rounded.whole else 0.0
        options.append((count * form.kernel_bytes(width), role_weight(matrix.name) * error, form))
    return _hull(sorted(options, key=lambda option: option[:2]))


def _hull(options: Iterable[tuple[int, float, Format]]) -> list[tuple[int, float, Format]]:
    """The lower convex hull of (bytes, cost), by size."""
    hull: list[tuple[int, float, Format]] = []
    for option in options:
        if hull and option[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _worth([hull[-2], hull[-1]], 0) >= _worth([hull[-1], option], 0):
            hull.pop()
        hull.append(option)
    return hull
