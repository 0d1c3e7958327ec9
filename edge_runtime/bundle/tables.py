"""Embedding tables as plain row-major files, read a few rows at a time.

Rows are read with pread rather than mapped: faulting around a mapped row would draw a table of gigabytes into memory
little by little, while a pread costs some microseconds and keeps the process small.

A row holds its values and then, below 32 bits, one float16 scale per block of values:
    32 bits  dim float32
     8 bits  dim int8, dim/block float16
     4 bits  dim/2 bytes of two values each (the low half first, stored + 8), dim/block float16
padded to a multiple of 16 bytes.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_ALIGN = 16


@dataclass(frozen=True)
class TableSpec:
    """How a table's rows are stored, as written in the manifest."""

    rows: int
    dim: int
    bits: int
    """32, 8 or 4."""
    block: int
    """Values that share a scale; unused at 32 bits."""
    row_bytes: int
    multiplier: float
    """Every value read is multiplied by it: Gemma's embedding scale, which thus costs nothing at run time."""

    @classmethod
    def make(cls, *, rows: int, dim: int, bits: int, block: int = 32, multiplier: float = 1.0) -> TableSpec:
        """Works out `row_bytes`.

        Raises:
            EdgeRuntimeError: bits other than 32, 8 and 4, or a dim that is not a multiple of block.
        """
        if bits not in {32, 8, 4}:
            raise EdgeRuntimeError(f"a table of {bits} bits is not known; 32, 8 and 4 are")
        if bits != 32 and (dim % block or block % 2):
            raise EdgeRuntimeError(f"a table row of {dim} values cannot be cut into blocks of {block}")
        size = dim * bits // 8 + (0 if bits == 32 else 2 * (dim // block))
        return cls(rows, dim, bits, block, size + -size % _ALIGN, multiplier)

    def to_json(self) -> dict[str, Any]:
        """A dict for the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TableSpec:
        """The inverse of `to_json`.

        Raises:
            EdgeRuntimeError: a key is missing or unknown.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise EdgeRuntimeError(f"the bundle's table cannot be read: {error}") from error


class Table:
    """An open table; safe to read from several threads.

    Example:
        with Table.open(path, spec) as table:
            rows = table.read(np.array([2, 105]))
    """

    def __init__(self, descriptor: int, spec: TableSpec) -> None:
        self.spec = spec
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, spec: TableSpec) -> Table:
        """Opens the file at `path`.

        Raises:
            EdgeRuntimeError: it is absent or not as long as `spec` says.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise EdgeRuntimeError(f"{path}: {error.strerror}") from error
        size, expected = os.fstat(descriptor).st_size, spec.rows * spec.row_bytes
        if size != expected:
            os.close(descriptor)
            raise EdgeRuntimeError(f"{path} has {size} bytes, its manifest says {expected}")
        return cls(descriptor, spec)

    def read(self, ids: NDArray[np.int64], start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Columns start..stop of rows `ids` [n], times the multiplier: float32 [n, stop - start].

        Raises:
            EdgeRuntimeError: an id outside the table, or columns that cut a block.
        """
        spec = self.spec
        stop = spec.dim if stop is None else stop
        if not 0 <= start <= stop <= spec.dim or (spec.bits != 32 and (start % spec.block or stop % spec.block)):
            raise EdgeRuntimeError(f"columns {start} to {stop} are no whole blocks of this table", code="internal")
        ids = np.asarray(ids, np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= spec.rows):
            raise EdgeRuntimeError(f"token ids {ids.min()} to {ids.max()} reach outside a table of {spec.rows} rows")
        # Soft tokens all look up the same row, so equal ids are read once.
        unique, inverse = np.unique(ids, return_inverse=True)
        return self._decode(unique, start, stop)[inverse.reshape(-1)]

    def _decode(self, ids: NDArray[np.int64], start: int, stop: int) -> NDArray[np.float32]:
        spec, width = self.spec, stop - start
        values = self._bytes(ids, start * spec.bits // 8, width * spec.bits // 8)
        if spec.bits == 32:
            return values.view(np.float32) * np.float32(spec.multiplier)
        scales = self._bytes(ids, spec.dim * spec.bits // 8 + 2 * (start // spec.block), 2 * (width // spec.block))
        factors = scales.view(np.float16).astype(np.float32) * np.float32(spec.multiplier)
        if spec.bits == 8:
            whole = values.view(np.int8).astype(np.float32)
        else:
            whole = np.empty((len(ids), width), np.float32)
            whole[:, 0::2] = values & 15
            whole[:, 1::2] = values >> 4
            whole -= 8.0
        blocks = whole.reshape(len(ids), width // spec.block, spec.block)
        blocks *= factors[:, :, None]
        return whole

    def _bytes(self, ids: NDArray[np.int64], offset: int, count: int) -> NDArray[np.uint8]:
        """`count` bytes at `offset` of each row: uint8 [n, count]."""
        row_bytes = self.spec.row_bytes
        parts = [os.pread(self._descriptor, count, int(i) * row_bytes + offset) for i in ids]
        return np.frombuffer(b"".join(parts), np.uint8).reshape(len(ids), count)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_table(path: Path, spec: TableSpec, chunks: Iterable[NDArray[np.float32]]) -> None:
    """Writes a table from consecutive groups of rows, each float32 [any, dim]; memory is that of one group.

    Raises:
        EdgeRuntimeError: the groups do not add up to `spec.rows`.
    """
    written = 0
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(_encode(chunk, spec).tobytes())
            written += len(chunk)
    if written != spec.rows:
        raise EdgeRuntimeError(f"{path.name}: {written} rows were written, {spec.rows} are expected", code="internal")


def _encode(chunk: NDArray[np.float32], spec: TableSpec) -> NDArray[np.uint8]:
    rows = np.zeros((len(chunk), spec.row_bytes), np.uint8)
    if spec.bits == 32:
        values = np.ascontiguousarray(chunk, np.float32).view(np.uint8)
        rows[:, : values.shape[1]] = values
        return rows
    blocks = chunk.reshape(len(chunk), -1, spec.block)
    if spec.bits == 8:
        extreme, levels = np.abs(blocks).max(-1), 127.0
    else:
        # Q4_0: the value of largest magnitude becomes -8, the one level that has no positive twin.
        at = np.abs(blocks).argmax(-1)[..., None]
        extreme, levels = np.take_along_axis(blocks, at, -1)[..., 0], -8.0
    scales = (extreme / np.float32(levels)).astype(np.float16)
    # Rounding to the scale as it is stored, so that its own rounding is not added on top.
    divisor = scales.astype(np.float32)
    divisor[divisor == 0] = np.inf
    whole = np.rint(blocks / divisor[..., None]).reshape(len(chunk), spec.dim)
    if spec.bits == 8:
        values = np.clip(whole, -127, 127).astype(np.int8).view(np.uint8)
    else:
        nibbles = np.clip(whole + 8, 0, 15).astype(np.uint8)
        values = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    packed = np.ascontiguousarray(scales).view(np.uint8).reshape(len(chunk), -1)
    rows[:, : values.shape[1]] = values
    rows[:, values.shape[1] : values.shape[1] + packed.shape[1]] = packed
    return rows
