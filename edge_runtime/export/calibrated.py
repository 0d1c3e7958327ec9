"""Calibrated rounding: GPTQ, with what is known of a matrix's inputs.

A bundle of the same checkpoint reads some prompts (`edge_runtime.evaluation.moments`), and for every matrix the second
moments of the vectors that it multiplies are summed up. Columns are then rounded one after the other, and what one
loses is made up for by those after it, so that the product errs less though the weights err more (Frantar et al.,
2023, arXiv:2210.17323). Unlike there, only columns within a run of at most 256 make up for each other: moments take
little room, a matrix of any width takes no more memory than plain rounding, and the built-in model shows no difference
(`python -m benchmarks.calibrated`). Scales are those of plain rounding.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Self

import numpy as np

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.quant import Rounded, pack, scaled, square

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.export.quant import Format

_RUN = 256  # columns that make up for each other
_COLUMNS = 32  # that are done one by one before the rest of the run follows
_SLAB = 1 << 19  # weights dealt with at a time
_DAMPING = 0.1  # of the mean square, added to each column's
BITS = 4
"""Of the formats that are rounded so; with 2 and 8 it was not found better."""


def run_width(width: int) -> int:
    """Columns of a run, for a matrix of `width` columns (a multiple of 32)."""
    return next(run for run in range(_RUN, 0, -_COLUMNS) if width % run == 0)


class Moments:
    """Second moments from a file, read as they are wanted."""

    def __init__(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        self._arrays = arrays

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens what `save` wrote.

        Raises:
            EdgeRuntimeError: the file cannot be read.
        """
        try:
            return cls(np.load(path))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise EdgeRuntimeError(f"{path} holds no moments: {error}") from None

    def of(self, name: str, width: int) -> NDArray[np.float32] | None:
        """Of the inputs of the matrix called `name`: [runs, run, run]; None if they are not known.

        Raises:
            EdgeRuntimeError: they are those of another model.
        """
        if name not in self._arrays:
            return None
        run = run_width(width)
        found = self._arrays[name]
        if found.shape != (width // run, run, run):
            raise EdgeRuntimeError(f"the moments of {name} are those of another model")
        return found


def followers(moments: NDArray[np.float32]) -> NDArray[np.float32]:
    """What an error in a column changes in those after it.

    Args:
        moments: [runs, run, run].

    Returns:
        float32 [runs, run, run], upper triangular: in row k, by how much each later column moves for each unit that
        column k lost.
    """
    return np.stack([_followers(run.astype(np.float64)) for run in moments])


def _followers(moments: NDArray[np.float64]) -> NDArray[np.float32]:
    diagonal = np.einsum("kk->k", moments)
    # Columns that never carry anything may be rounded as they like.
    diagonal += _DAMPING * diagonal.mean() + np.finfo(np.float32).tiny
    upper = np.linalg.cholesky(np.linalg.inv(moments)).T
    moved: NDArray[np.float32] = (upper / np.diag(upper)[:, None]).astype(np.float32)
    return moved


def compensate(
    weight: NDArray[np.float32],
    form: Format,
    moved: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
) -> Rounded:
    """Rounds a matrix, each column's error made up for by the later columns of its run.

    Args:
        weight: [N, K].
        form: Of 2 or 4 bits.
        moved: From `followers`, [runs, run, run].
        importance: As for `quantize`, for the scales.
    """
    result, steps = scaled(weight, form, importance)
    rows = max(1, _SLAB // weight.shape[1])
    for start in range(0, len(weight), rows):
        at = slice(start, start + rows)
        _compensate(weight[at], steps[at], result, at, moved)
    return result


def _compensate(
    weight: NDArray[np.float32], steps: NDArray[np.float32], result: Rounded, at: slice, moved: NDArray[np.float32]
) -> None:
    rows, width = weight.shape
    runs, run = moved.shape[:2]
    form = result.format
    middle = 1 << (form.bits - 1)
    left = np.ascontiguousarray(weight.T).reshape(runs, run, rows)
    scales = np.repeat(steps.T, form.block, axis=0).reshape(runs, run, rows)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    levels = np.empty((runs, run, rows), np.int8)
    for start in range(0, run, _COLUMNS):
        stop = start + _COLUMNS
        errors = np.empty((runs, _COLUMNS, rows), np.float32)
        for k in range(start, stop):
            whole = np.clip(np.rint(left[:, k] * inverse[:, k]), -middle, middle - 1)
            levels[:, k] = whole
            error = errors[:, k - start] = left[:, k] - whole * scales[:, k]
            left[:, k + 1 : stop] -= moved[:, k, k + 1 : stop, None] * error[:, None]
        left[:, stop:] -= moved[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    scales *= levels
    result.packed[at] = pack(levels.reshape(width, rows).T.reshape(rows, -1, form.block), form.bits)
    result.lost += square(scales.reshape(width, rows).T - weight)
    result.whole += square(weight)
