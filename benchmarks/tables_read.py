"""The ways to read rows of a table that `benchmarks.tables` compares."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle.checksums import PAGE
from edge_runtime.bundle.rows import prefix_bytes
from edge_runtime.bundle.tables import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.tables import TableSpec

    Way = Callable[[Path, TableSpec, list[int]], int]
    """Reads rows of a file; the result is the resident size while it is still open."""

PROMPT = 512
PREFIX = 15 * 256
"""E2B's columns of the layers that every token passes."""


@dataclass(frozen=True)
class Reading:
    """What reading some rows cost."""

    seconds: float
    kib: float
    """From disk, a row."""
    resident: int
    """Bytes that the process grew by."""


def measure_way(path: Path, spec: TableSpec, way: str, count: int) -> Reading:
    """Reads distinct random rows, none of them cached."""
    ids = np.random.default_rng(count).choice(spec.rows, count, replace=False).tolist()
    drop(path)
    resident, disk, started = _resident(), _disk(), time.perf_counter()
    after = WAYS[way](path, spec, ids)
    seconds = time.perf_counter() - started
    return Reading(seconds, (_disk() - disk) / count / 1024, after - resident)


def drop(path: Path) -> None:
    """Takes a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _resident() -> int:
    return _counter("status", "VmRSS") * 1024


def _disk() -> int:
    return _counter("io", "read_bytes")


def _counter(file: str, key: str) -> int:
    lines = Path(f"/proc/self/{file}").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def _pages(spec: TableSpec, row: int) -> tuple[int, int]:
    """First byte and length of the pages that a row touches."""
    start = spec.position(row)
    first = start // PAGE * PAGE
    return first, -(-(start + prefix_bytes(spec, spec.dim)) // PAGE) * PAGE - first


def _mapped(*advice: str) -> Way:
    def way(path: Path, spec: TableSpec, ids: list[int]) -> int:
        size = prefix_bytes(spec, spec.dim)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            if "random" in advice:
                view.madvise(mmap.MADV_RANDOM)
            if "prefetch" in advice:
                for row in ids:
                    view.madvise(mmap.MADV_WILLNEED, *_pages(spec, row))
            for row in ids:
                start = spec.position(row)
                view[start : start + size]
            return _resident()

    return way


def _pread(*advice: str) -> Way:
    def way(path: Path, spec: TableSpec, ids: list[int]) -> int:
        size = prefix_bytes(spec, spec.dim)
        with path.open("rb") as file:
            number = file.fileno()
            if "random" in advice:
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
            if "prefetch" in advice:
                for row in ids:
                    os.posix_fadvise(number, *_pages(spec, row), os.POSIX_FADV_WILLNEED)
            for row in ids:
                os.pread(number, size, spec.position(row))
            return _resident()

    return way


def _table(*, prefetch: bool, columns: int | None = None) -> Way:
    """As the engine does: in chunks of 256 tokens, decoded."""

    def way(path: Path, spec: TableSpec, ids: list[int]) -> int:
        with Table(path, spec) as table:
            if prefetch:
                table.prefetch(np.array(ids), columns)
            for start in range(0, len(ids), 256):
                table.read(np.array(ids[start : start + 256]), 0, columns)
            return _resident()

    return way


WAYS: dict[str, Way] = {
    "mmap": _mapped(),
    "mmap, MADV_RANDOM": _mapped("random"),
    "mmap, MADV_RANDOM, MADV_WILLNEED first": _mapped("random", "prefetch"),
    "pread": _pread(),
    "pread, FADV_RANDOM": _pread("random"),
    "pread, FADV_RANDOM, FADV_WILLNEED first": _pread("random", "prefetch"),
    "`Table.read`": _table(prefetch=False),
    "`Table.prefetch`, `Table.read`": _table(prefetch=True),
    "the same, own layers only (a prompt)": _table(prefetch=True, columns=PREFIX),
}
