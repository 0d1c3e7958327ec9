"""The token embedding, read from the output head: the two are one matrix, so the bundle holds it once.

The head's rows lie in the decoder's data file as its kernel wants them, weights in one place and scales in another; a
token's are read with pread. The kernel is told that reads are random, so that a row brings its own pages and no others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle.row_file import RowFile
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_SCALES: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "i8": np.dtype("i1")}


@dataclass(frozen=True)
class SharedSpec:
    """Where the rows lie, as written in the manifest."""

    file: str
    rows: int
    dim: int
    bits: int
    """2, 4 or 8; a level is 2^(bits-1) less than what is stored, the first of a byte in its lowest bits."""
    block: int
    """Values that share a scale."""
    scales: str
    """ "f32", "f16", or "i8": int8, times a float32 factor for each row."""
    packed_at: int
    """Where the weights begin in the file."""
    scales_at: int
    factors_at: int
    """Where the factors begin, with scales "i8"."""
    multiplier: float
    """Every value read is multiplied by it: Gemma's embedding scale."""

    @property
    def packed_bytes(self) -> int:
        """Of a row's weights."""
        return self.dim * self.bits // 8

    @property
    def scale_bytes(self) -> int:
        """Of a row's scales."""
        return self.dim // self.block * _SCALES[self.scales].itemsize

    @property
    def end(self) -> int:
        """The file has at least so many bytes."""
        ends = [self.packed_at + self.rows * self.packed_bytes, self.scales_at + self.rows * self.scale_bytes]
        return max(*ends, self.factors_at + 4 * self.rows if self.scales == "i8" else 0)

    def to_json(self) -> dict[str, Any]:
        """A dict for the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SharedSpec:
        """The inverse of `to_json`.

        Raises:
            EdgeRuntimeError: a key is missing or unknown, or a value makes no sense.
        """
        try:
            spec = cls(**data)
            sound = spec.bits in {2, 4, 8} and spec.scales in _SCALES and not spec.dim % spec.block
        except (TypeError, ZeroDivisionError) as error:
            raise EdgeRuntimeError(f"the bundle's embedding cannot be read: {error}") from error
        if not sound:
            raise EdgeRuntimeError(f"the bundle's embedding of {spec.bits} bits in blocks of {spec.block} is not known")
        return spec


class SharedTable(RowFile):
    """The open embedding; safe to read from several threads.

    Example:
        with SharedTable(folder, manifest.embedding) as table:
            rows = table.read(np.array([2, 105]))
    """

    def __init__(self, folder: Path, spec: SharedSpec) -> None:
        """Opens the bundle's file.

        Raises:
            EdgeRuntimeError: it is absent, or shorter than `spec` says.
        """
        path = folder / spec.file
        super().__init__(path)
        if (size := self._size()) < spec.end:
            self.close()
            raise EdgeRuntimeError(f"{path} has {size} bytes, the embedding in it ends at {spec.end}")
        self.spec = spec
        # One lookup gives all values of a byte.
        places = np.arange(0, 8, spec.bits, dtype=np.uint8)
        levels = (np.arange(256)[:, None] >> places) & ((1 << spec.bits) - 1)
        self._levels = (levels - (1 << (spec.bits - 1))).astype(np.float32)

    def prefetch(self, ids: NDArray[np.int64]) -> None:
        """Asks the kernel for rows `ids`, to be read later; does not wait for them. Ids outside are passed over."""
        for row in np.unique(ids).tolist():
            if 0 <= row < self.spec.rows:
                for offset, size in self._places(row):
                    self._ask(offset, size)

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows `ids` [n], times the multiplier: float32 [n, dim].

        Raises:
            EdgeRuntimeError: an id outside the table, or the file ends within a row.
        """
        spec = self.spec
        ids = np.asarray(ids, np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= spec.rows):
            raise EdgeRuntimeError(f"token ids {ids.min()} to {ids.max()} reach outside a table of {spec.rows} rows")
        # Soft tokens all look up the same row, so equal ids are read once.
        unique, inverse = np.unique(ids, return_inverse=True)
        parts = [[self._bytes(row, *place) for place in self._places(row)] for row in unique.tolist()]
        packed = np.frombuffer(b"".join(part[0] for part in parts), np.uint8)
        steps = np.frombuffer(b"".join(part[1] for part in parts), _SCALES[spec.scales]).astype(np.float32)
        steps = steps.reshape(len(unique), spec.dim // spec.block) * np.float32(spec.multiplier)
        if spec.scales == "i8":
            steps *= np.frombuffer(b"".join(part[2] for part in parts), "<f4")[:, None]
        values = self._levels[packed].reshape(*steps.shape, spec.block)
        values *= steps[:, :, None]
        return values.reshape(len(unique), spec.dim)[inverse.reshape(-1)]

    def _places(self, row: int) -> list[tuple[int, int]]:
        """Offset and bytes of a row's weights, scales and factor."""
        spec = self.spec
        places = [(spec.packed_at, spec.packed_bytes), (spec.scales_at, spec.scale_bytes)]
        if spec.scales == "i8":
            places.append((spec.factors_at, 4))
        return [(start + row * size, size) for start, size in places]
