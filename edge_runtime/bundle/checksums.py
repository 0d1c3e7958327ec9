"""Sizes, SHA-256 and block checksums of a bundle's files.

The SHA-256 in bundle.json says what a file is; `verify` compares it. The CRC-32 of every block, in one file beside it,
says where a file is damaged, and lets a part be checked without the rest: the engine checks whole graphs while they are
being opened and single pages of a table whenever they are read, so that a flipped bit never becomes an answer.

checksums.crc32 holds one little-endian uint32 (zlib's CRC-32) a block, for each file in the order of their names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import zlib
from array import array
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from io import FileIO

    from numpy.typing import NDArray

    Tick = Callable[[int], None]
    """Told how many bytes were dealt with since it was last called."""

_T = TypeVar("_T")

PAGE = 4096
"""Bytes of a table that share a checksum: what the kernel reads from disk anyway."""
BLOCK = 1 << 16
"""The same for all other files, which are read from end to end: long enough that zlib works without Python's lock."""
_READ = 1 << 20
_SHOWN = 3  # damaged places that a line names


@dataclass(frozen=True)
class FileEntry:
    """What a file must be, as written in the manifest."""

    size: int
    """Bytes."""
    sha256: str
    block: int = BLOCK
    """Bytes that share a CRC-32; 0 for the file of the checksums, which has none itself."""

    @classmethod
    def of(cls, path: Path, block: int = BLOCK) -> FileEntry:
        """Measures a file."""
        return measure(path, block).entry

    @property
    def blocks(self) -> int:
        """Checksums that the file has."""
        return -(-self.size // self.block) if self.block else 0


@dataclass(frozen=True)
class Measured:
    """What was found out about a file."""

    entry: FileEntry
    crcs: NDArray[np.uint32]
    """CRC-32 of each block: [entry.blocks]."""


class Meter:
    """Measures a file while it is being written (or read) from its beginning to its end; no CRC-32 if `block` is 0.

    Example:
        meter = Meter(BLOCK)
        for data in pieces:
            file.write(data)
            meter.update(data)
        entry = meter.result().entry
    """

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._sha = hashlib.sha256()
        self._crcs = array("I")
        self._crc = self._filled = self._size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes of the file."""
        view = memoryview(data).cast("B")
        self._sha.update(view)
        self._size += len(view)
        while self._block and view:
            part = view[: self._block - self._filled]
            self._crc = zlib.crc32(part, self._crc)
            self._filled += len(part)
            if self._filled == self._block:
                self._crcs.append(self._crc)
                self._crc = self._filled = 0
            view = view[len(part) :]

    def result(self) -> Measured:
        """What the bytes so far amount to."""
        crcs = np.array(self._crcs, np.uint32)
        if self._filled:
            crcs = np.append(crcs, np.uint32(self._crc))
        return Measured(FileEntry(self._size, self._sha.hexdigest(), self._block), crcs)


def measure(path: Path, block: int = BLOCK, tick: Tick | None = None) -> Measured:
    """Measures a file; memory does not grow with its size."""
    meter = Meter(block)
    for data in _pieces(path):
        meter.update(data)
        if tick:
            tick(len(data))
    return meter.result()


def measure_all(folder: Path, blocks: Mapping[str, int], tick: Tick | None = None) -> dict[str, Measured]:
    """Measures several files at once, on all cores; `blocks` gives the block size of each by its name."""
    sizes = {name: (folder / name).stat().st_size for name in blocks}
    return over_files(sizes, lambda name, told: measure(folder / name, blocks[name], told), tick)


def over_files(sizes: Mapping[str, int], work: Callable[[str, Tick], _T], tick: Tick | None = None) -> dict[str, _T]:
    """Does `work` with each file's name, on all cores, and stops them all at the first error.

    Args:
        sizes: Of the files; the largest go first, so that no core is left with one at the end.
        work: Called with a name and what it has to tell now and then how many bytes it has dealt with.
        tick: Told the same, from one thread at a time.

    Returns:
        What `work` gave for each name, in the order of `sizes`.
    """
    stopped, lock = threading.Event(), threading.Lock()

    def told(count: int) -> None:
        if stopped.is_set():
            raise CancelledError
        if tick:
            with lock:
                tick(count)

    with ThreadPoolExecutor(cores()) as pool:
        tasks = {name: pool.submit(work, name, told) for name in sorted(sizes, key=lambda name: -sizes[name])}
        try:
            return {name: tasks[name].result() for name in sizes}
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_checksums(folder: Path, files: Mapping[str, Measured]) -> FileEntry:
    """Writes the checksums of `files`; the result describes the file written."""
    data = b"".join(files[name].crcs.astype("<u4").tobytes() for name in sorted(files))
    path = folder / names.CHECKSUMS
    path.write_bytes(data)
    return FileEntry(len(data), hashlib.sha256(data).hexdigest(), 0)


class Checksums:
    """The block checksums of a bundle, opened: 4 bytes of memory for each page of a table.

    Example:
        checksums = Checksums.open(folder, manifest.files)
        checksums.check("decoder_model_merged.onnx")
    """

    def __init__(self, folder: Path, files: Mapping[str, FileEntry], crcs: NDArray[np.uint32]) -> None:
        self._folder, self._files = folder, files
        self._crcs: dict[str, NDArray[np.uint32]] = {}
        start = 0
        for name in sorted(files):
            self._crcs[name] = crcs[start : start + files[name].blocks]
            start += files[name].blocks

    @classmethod
    def open(cls, folder: Path, files: Mapping[str, FileEntry]) -> Checksums:
        """Reads the checksums, and makes sure that every file is there and has its size.

        Raises:
            EdgeRuntimeError: a file is absent, too short or too long, or the checksums themselves are damaged.
        """
        for name, entry in files.items():
            if problem := check_size(folder, name, entry):
                raise EdgeRuntimeError(f"{folder}: {problem}", "internal")
        return cls.read(folder, files)

    @classmethod
    def read(cls, folder: Path, files: Mapping[str, FileEntry]) -> Checksums:
        """Reads the checksums, whatever the other files are like.

        Raises:
            EdgeRuntimeError: they are absent or damaged.
        """
        path = folder / names.CHECKSUMS
        try:
            data = path.read_bytes()
        except OSError as error:
            raise EdgeRuntimeError(f"{path}: {error.strerror}", "internal") from None
        entry = files.get(names.CHECKSUMS)
        if entry is None or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise EdgeRuntimeError(f"{path} is damaged: its SHA-256 is not the one in {names.MANIFEST}", "internal")
        crcs = np.frombuffer(data, "<u4").astype(np.uint32, copy=False)
        if len(crcs) != sum(entry.blocks for entry in files.values()):
            raise EdgeRuntimeError(f"{path} does not fit the files in {names.MANIFEST}", "internal")
        return cls(folder, files, crcs)

    def pages(self, name: str) -> NDArray[np.uint32] | None:
        """The checksums of a file that is read page by page; None if it has blocks of another size."""
        entry = self._files.get(name)
        return self._crcs[name] if entry is not None and entry.block == PAGE else None

    def damage(self, name: str, found: NDArray[np.uint32]) -> str | None:
        """What is wrong with a file whose blocks have the checksums `found`, and where; None if nothing."""
        entry = self._files[name]
        if len(found) != entry.blocks:
            return f"{name} changed while it was read"
        edges = np.flatnonzero(np.diff(np.pad(found != self._crcs[name], 1).astype(np.int8))).reshape(-1, 2)
        places = [(first * entry.block, min(after * entry.block, entry.size) - 1) for first, after in edges.tolist()]
        if not places:
            return None
        shown = ", ".join(f"{first} to {last}" for first, last in places[:_SHOWN])
        more = f" and {len(places) - _SHOWN} more places" if len(places) > _SHOWN else ""
        return f"{name} is damaged in bytes {shown}{more}"

    def check(self, *files: str) -> None:
        """Reads files wholly and compares their checksums.

        Raises:
            EdgeRuntimeError: one is damaged, cannot be read, or is none of the bundle's; the line names file and place.
        """
        for name in files:
            if name not in self._files:
                raise EdgeRuntimeError(f"{self._folder}: {name} is not listed in {names.MANIFEST}", "internal")
            try:
                problem = self.damage(name, _crcs(self._folder / name, self._files[name].block))
            except OSError as error:
                problem = f"{name}: {error.strerror}"
            if problem:
                raise EdgeRuntimeError(f"{self._folder}: {problem}", "internal")

    @contextlib.contextmanager
    def checking(self, *files: str) -> Iterator[None]:
        """Checks files in a thread of their own while the body uses them.

        ONNX Runtime reads the same bytes meanwhile, so they come from the disk once, and the check costs only what it
        takes of the processor.

        Raises:
            EdgeRuntimeError: as `check`, when the body is through; it goes before an error of the body's own.
        """
        with ThreadPoolExecutor(1, "checksums") as pool:
            verdict = pool.submit(self.check, *files)
            try:
                yield
            finally:
                verdict.result()


def check_size(folder: Path, name: str, entry: FileEntry) -> str | None:
    """What is wrong with a file at first sight; None if nothing."""
    if Path(name).name != name:
        return f"{names.MANIFEST} lists {name!r}, which is no plain file name"
    try:
        size = (folder / name).stat().st_size
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name}: {error.strerror}"
    return None if size == entry.size else f"{name} has {size} bytes instead of {entry.size}"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _crcs(path: Path, block: int) -> NDArray[np.uint32]:
    """CRC-32 of each block of a file."""
    return np.array(
        [zlib.crc32(data[start : start + block]) for data in _pieces(path) for start in range(0, len(data), block)],
        np.uint32,
    )


def _pieces(path: Path) -> Iterator[memoryview]:
    """A file's bytes, 1 MiB at a time; each piece is overwritten by the next."""
    buffer = memoryview(bytearray(_READ))
    with path.open("rb", buffering=0) as file:
        while count := _fill(file, buffer):
            yield buffer[:count]


def _fill(file: FileIO, buffer: memoryview) -> int:
    """Reads until `buffer` is full or the file ends: a block must not be cut by a short read."""
    count = 0
    while count < len(buffer) and (more := file.readinto(buffer[count:])):
        count += more
    return count
