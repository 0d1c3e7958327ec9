"""The data file beside a graph: where its weights go, a few rows at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from edge_runtime.export.calibrated import compensate, followers
from edge_runtime.export.follow import Follower
from edge_runtime.export.parallel import map_rows
from edge_runtime.export.quant import Format, Rounded, quantize, settle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.bundle.checksums import Measured
    from edge_runtime.export.matrix import Matrix
    from edge_runtime.export.parallel import Pace

_PAGE = 4096  # ONNX Runtime maps external data only at page boundaries


@dataclass
class WeightError:
    """What rounding did to one matrix."""

    name: str
    bits: int
    relative: float
    """Frobenius norm of the error over that of the matrix."""


@dataclass(frozen=True)
class Extent:
    """Where an array lies in the file."""

    offset: int
    size: int
    """Bytes."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Places:
    """Where the parts of a rounded matrix lie."""

    format: Format
    packed: Extent
    scales: Extent
    factors: Extent | None


class DataFile:
    """A file of arrays, written in any order. A context manager: leaving it closes the file."""

    def __init__(self, path: Path, pace: Pace, tick: Callable[[int], None] | None = None) -> None:
        """Opens `path`, emptied.

        Args:
            path: The file.
            pace: How fast matrices go through.
            tick: Told how many weights were written since it was last called.
        """
        self.name = path.name
        self._pace, self._tick = pace, tick
        self._file = path.open("w+b")
        self._follower = Follower(path)
        self._end = 0

    def put(self, array: NDArray[Any]) -> Extent:
        """Writes an array."""
        extent = self._reserve(array.dtype, array.shape)
        self._write(extent.offset, array)
        self._settled()
        return extent

    def plain(self, matrix: Matrix) -> Extent:
        """Writes the matrix [N, K] in float32."""
        extent = self._reserve(np.dtype("<f4"), matrix.shape)
        for start, rows in map_rows(matrix.shape, matrix.rows, self._pace, self._tick):
            self._write(extent.offset + 4 * start * matrix.shape[1], rows)
        self._settled()
        return extent

    def transposed(self, matrix: Matrix) -> Extent:
        """Writes the transposed matrix [K, N] in float32."""
        count, width = matrix.shape
        extent = self._reserve(np.dtype("<f4"), (width, count))

        def turned(start: int, stop: int) -> NDArray[np.float32]:
            return np.ascontiguousarray(matrix.rows(start, stop).T)

        for start, columns in map_rows(matrix.shape, turned, self._pace, self._tick):
            for k, column in enumerate(columns):
                self._write(extent.offset + 4 * (k * count + start), column)
        self._settled()
        return extent

    def rounded(
        self,
        matrix: Matrix,
        form: Format,
        importance: NDArray[np.float32] | None = None,
        moments: NDArray[np.float32] | None = None,
    ) -> tuple[Places, WeightError]:
        """Rounds the matrix as `quantize` does, or with moments as `compensate` does, and writes its parts."""
        count, width = matrix.shape
        packed, scales, factors = self._room(count, width, form)
        lost = whole = 0.0
        moved = None if moments is None else followers(moments)

        def work(start: int, stop: int) -> Rounded:
            if matrix.native == form:
                return settle(matrix.grid(start, stop), form)
            if moved is not None:
                return compensate(matrix.rows(start, stop), form, moved, importance)
            return quantize(matrix.rows(start, stop), form, importance)

        for start, result in map_rows(matrix.shape, work, self._pace, self._tick):
            for extent, part in ((packed, result.packed), (scales, result.scales), (factors, result.factors)):
                if extent is not None and part is not None:
                    self._write(extent.offset + start * (extent.size // count), part)
            lost, whole = lost + result.lost, whole + result.whole
        self._settled()
        error = WeightError(matrix.name, form.bits, math.sqrt(lost / whole) if whole else 0.0)
        return Places(form, packed, scales, factors), error

    def finish(self) -> Measured:
        """Cuts the file to its length, a byte at least, and closes it; the result is what it is."""
        size = max(self._end, 1)
        self._file.truncate(size)
        self._file.close()
        with self._follower as follower:
            return follower.finish(size)

    def close(self) -> None:
        """Closes the file."""
        self._follower.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reserve(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Extent:
        size = dtype.itemsize * math.prod(shape)
        offset = self._end + -self._end % (_PAGE if size >= _PAGE else 64)
        self._end = offset + size
        return Extent(offset, size, dtype, shape)

    def _settled(self) -> None:
        """All that was written so far stays as it is."""
        self._file.flush()
        self._follower.upto(self._end)

    def _room(self, count: int, width: int, form: Format) -> tuple[Extent, Extent, Extent | None]:
        """Room for a rounded matrix: weights, scales and factors."""
        blocks = width // form.block
        packed = self._reserve(np.dtype("u1"), (count, blocks, form.block * form.bits // 8))
        scales = self._reserve(form.scale_dtype, (count, blocks))
        return packed, scales, self._reserve(np.dtype("<f4"), (count, 1)) if form.scales == "i8" else None

    def _write(self, offset: int, array: NDArray[Any]) -> None:
        self._file.seek(offset)
        self._file.write(np.ascontiguousarray(array).data.cast("B"))


class Survey(DataFile):
    """Takes what a data file takes and writes nothing.

    Attributes:
        matrices: What would be rounded.
        other: Bytes of all else.
    """

    def __init__(self) -> None:
        self.name = ""
        self.matrices: list[Matrix] = []
        self.other = 0

    def put(self, array: NDArray[Any]) -> Extent:
        """See DataFile."""
        self.other += array.nbytes
        return Extent(0, array.nbytes, array.dtype, array.shape)

    def plain(self, matrix: Matrix) -> Extent:
        """See DataFile."""
        size = 4 * math.prod(matrix.shape)
        self.other += size
        return Extent(0, size, np.dtype("<f4"), matrix.shape)

    def transposed(self, matrix: Matrix) -> Extent:
        """See DataFile."""
        return self.plain(matrix)

    def rounded(
        self,
        matrix: Matrix,
        form: Format,
        importance: NDArray[np.float32] | None = None,  # noqa: ARG002
        moments: NDArray[np.float32] | None = None,  # noqa: ARG002
    ) -> tuple[Places, WeightError]:
        """See DataFile."""
        self.matrices.append(matrix)
        none = Extent(0, 0, np.dtype("u1"), matrix.shape)
        return Places(form, none, none, None), WeightError(matrix.name, form.bits, 0.0)

    def close(self) -> None:
        """See DataFile."""
