"""Embedding tables as plain row-major files, read a few rows at a time.

A row (see `rows`) holds its values and scales together, and rows lie so that each touches as few pages as its length
allows: where rows end to end would now and then touch one page more, some of them share a run of pages and the rest of
the run stays empty. The 4-bit per-layer rows of E2B (4624 bytes) lie 7 in 8 pages, so each touches two.

Rows are read with pread rather than mapped. The kernel is told that reads are random, so that a cold row brings its own
pages and no others, and a prompt's rows are asked for before the first is needed, so that the disk gets to them all at
once. A mapping does the same reads, but faulting around each row it maps what happens to be cached beside it: the
resident size grows with every row (docs/export.md has the figures).
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle.checksums import PAGE, Measured, Meter
from edge_runtime.bundle.row_file import RowFile
from edge_runtime.bundle.rows import decode, prefix_bytes
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_ALIGN = 16
_PADDING = 8  # rows are spread over pages if that adds no more than an eighth to the file


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
    """From the beginning of a row to that of the next in its group."""
    multiplier: float
    """Every value read is multiplied by it: Gemma's embedding scale, which thus costs nothing at run time."""
    group_rows: int = 1
    """Rows that lie end to end, before padding."""
    group_bytes: int = 0
    """From the beginning of a group to that of the next."""

    @classmethod
    def make(cls, *, rows: int, dim: int, bits: int, block: int = 32, multiplier: float = 1.0) -> TableSpec:
        """Works out where the rows lie.

        Raises:
            EdgeRuntimeError: bits other than 32, 8 and 4, or a dim that is not a multiple of block.
        """
        if bits not in {32, 8, 4}:
            raise EdgeRuntimeError(f"a table of {bits} bits is not known; 32, 8 and 4 are")
        if bits != 32 and (dim % block or block % 2):
            raise EdgeRuntimeError(f"a table row of {dim} values cannot be cut into blocks of {block}")
        size = prefix_bytes(cls(rows, dim, bits, block, 0, multiplier), dim)
        size += -size % _ALIGN
        # A row of m pages and a bit touches m + 1 pages if the bits of the rows before it fit into one page with its
        # own: k rows in k * m + 1 pages.
        whole, bit = divmod(size, PAGE)
        together = PAGE // bit if bit else 1
        group = (together * whole + (1 if bit else 0)) * PAGE
        stride = group // together // _ALIGN * _ALIGN
        if group * _PADDING <= together * size * (_PADDING + 1):
            return cls(rows, dim, bits, block, stride, multiplier, together, group)
        return cls(rows, dim, bits, block, size, multiplier, 1, size)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.position(self.rows - 1 + self.group_rows - (self.rows - 1) % self.group_rows)

    def position(self, row: int) -> int:
        """Where a row begins."""
        group, place = divmod(row, self.group_rows)
        return group * self.group_bytes + place * self.row_bytes

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


class Table(RowFile):
    """An open table; safe to read from several threads.

    Example:
        with Table(path, spec, checksums.pages(path.name)) as table:
            table.prefetch(prompt)
            rows = table.read(np.array([2, 105]))
    """

    def __init__(self, path: Path, spec: TableSpec, pages: NDArray[np.uint32] | None = None) -> None:
        """Opens the file at `path`.

        Args:
            path: The file.
            spec: How its rows are stored.
            pages: CRC-32 of each of its pages. Every page is then compared with its own whenever it is read.

        Raises:
            EdgeRuntimeError: it is absent or not as long as `spec` says.
        """
        super().__init__(path)
        self.spec, self._pages = spec, pages
        if (size := self._size()) != spec.size:
            self.close()
            raise EdgeRuntimeError(f"{path} has {size} bytes, its manifest says {spec.size}")

    def prefetch(self, ids: NDArray[np.int64], stop: int | None = None) -> None:
        """Asks the kernel for columns 0..stop of rows `ids`, to be read later; does not wait for them.

        Ids outside the table are passed over: `read` complains about them.
        """
        spec = self.spec
        size = prefix_bytes(spec, spec.dim if stop is None else stop)
        for row in np.unique(ids).tolist():
            if 0 <= row < spec.rows:
                self._ask(spec.position(row), size)

    def read(self, ids: NDArray[np.int64], start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Columns start..stop of rows `ids` [n], times the multiplier: float32 [n, stop - start].

        Columns 0..start are read too where start is not 0: who wants both asks for both at once.

        Raises:
            EdgeRuntimeError: an id outside the table, columns that cut a block, or a row that is damaged.
        """
        spec = self.spec
        stop = spec.dim if stop is None else stop
        if not 0 <= start <= stop <= spec.dim or (spec.bits != 32 and (start % spec.block or stop % spec.block)):
            raise EdgeRuntimeError(f"columns {start} to {stop} are no whole blocks of this table", code="internal")
        ids = np.asarray(ids, np.int64)
        # Soft tokens all look up the same row, so equal ids are read once.
        unique, inverse = np.unique(ids, return_inverse=True) if len(ids) > 1 else (ids, None)
        if ids.size and not 0 <= unique[0] <= unique[-1] < spec.rows:
            raise EdgeRuntimeError(f"token ids {unique[0]} to {unique[-1]} reach outside a table of {spec.rows} rows")
        count = prefix_bytes(spec, stop)
        rows = np.frombuffer(b"".join([self._row(row, count) for row in unique.tolist()]), np.uint8)
        values = decode(rows.reshape(len(unique), count), spec, start, stop)
        return values if inverse is None else values[inverse.reshape(-1)]

    def _row(self, row: int, count: int) -> bytes | memoryview:
        """The first `count` bytes of a row."""
        start = self.spec.position(row)
        if self._pages is None:
            return self._bytes(row, start, count)
        first, last = start // PAGE, (start + count - 1) // PAGE
        end = min((last + 1) * PAGE, self.spec.size)
        data = memoryview(self._bytes(row, first * PAGE, end - first * PAGE))
        for page in range(first, last + 1):
            at = (page - first) * PAGE
            if zlib.crc32(data[at : at + PAGE]) != self._pages[page]:
                raise EdgeRuntimeError(
                    f"{self._path}: row {row} is damaged in bytes {page * PAGE} to {min((page + 1) * PAGE, end) - 1}: "
                    "copy or export the bundle again",
                    code="internal",
                )
        return data[start - first * PAGE : start - first * PAGE + count]


def write_table(path: Path, spec: TableSpec, groups: Iterable[NDArray[np.uint8]]) -> Measured:
    """Writes a table from consecutive groups of encoded rows, each [any, row_bytes]; memory is that of one group.

    Returns:
        What the file is, measured while it was written.

    Raises:
        EdgeRuntimeError: the groups do not add up to `spec.rows`.
    """
    written, meter = 0, Meter(PAGE)
    with path.open("wb") as file:

        def put(data: bytes | memoryview) -> None:
            file.write(data)
            meter.update(data)

        for rows in groups:
            done = 0
            while done < len(rows):
                part = rows[done : done + spec.group_rows - written % spec.group_rows]
                put(part.tobytes())
                done, written = done + len(part), written + len(part)
                put(bytes((spec.size if written == spec.rows else spec.position(written)) - file.tell()))
    if written != spec.rows:
        raise EdgeRuntimeError(f"{path.name}: {written} rows were written, {spec.rows} are expected", code="internal")
    return meter.result()
