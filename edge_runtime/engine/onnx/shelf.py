"""States of system turns on the disk, so that the first answer after a start need not read one again.

A file is a line of JSON, padded, and then the state's arrays. It is of use to one bundle, one type of keys and
values and one version of what computes them; all else is left alone and goes when room is needed. It holds what the
system turn says, as keys and values: files are for their owner only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import threading
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.engine.onnx.kv_cache import SLACK, Window
from edge_runtime.engine.onnx.prefix import Saved

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.engine.onnx.kv_cache import Layout

log = logging.getLogger(__name__)

BUDGET = 256 << 20
"""Bytes that the folder may hold."""
SHORTEST = 32
"""Tokens that are worth a file."""
_LINE = 1 << 14
_SUFFIX = ".kv"


@dataclass(frozen=True)
class _Entry:
    path: Path
    header: dict[str, Any]
    keys: NDArray[np.int64]


class Shelf:
    """A folder of saved states."""

    def __init__(self, folder: Path, identity: str, layers: tuple[int, int], budget: int = BUDGET) -> None:
        """Looks at what is there; nothing is read but the keys.

        Args:
            folder: Made when something is first kept.
            identity: Says which bundle and which versions the states are of.
            layers: Arrays in a state's window and in its full rows.
            budget: Bytes that the folder may hold.
        """
        self._folder, self._identity, self._layers, self._budget = folder, identity, layers, budget
        self._entries: dict[str, _Entry] = {}
        self._writer: threading.Thread | None = None
        self._lock = threading.Lock()
        for path in sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else ():
            if (entry := self._look(path)) is not None:
                self._entries[path.stem] = entry

    @classmethod
    def of(cls, cache: Path, manifest: Manifest, layout: Layout) -> Shelf:
        """The shelf of a bundle in the folder `cache`."""
        import onnxruntime  # noqa: PLC0415

        versions = [onnxruntime.__version__, version("edge-runtime"), platform.machine()]
        parts = [
            {name: entry.sha256 for name, entry in manifest.files.items()},
            [layout.dtype.str, layout.window, SLACK, *versions],
        ]
        identity = _digest(json.dumps(parts, sort_keys=True).encode())
        return cls(cache / "prefixes", identity, (len(layout.sliding), len(layout.full)))

    def find(self, keys: NDArray[np.int64], at_least: int) -> Saved | None:
        """The longest state of at least so many tokens that `keys` begin with; a damaged one is thrown away."""
        with self._lock:
            found = [
                entry
                for entry in self._entries.values()
                if at_least <= len(entry.keys) <= len(keys) and np.array_equal(entry.keys, keys[: len(entry.keys)])
            ]
        for entry in sorted(found, key=lambda entry: -len(entry.keys)):
            if (state := self._read(entry)) is not None:
                return state
        return None

    def put(self, state: Saved) -> None:
        """Writes a state in the background, unless it is there, is short, or one is just being written."""
        name = state.name
        with self._lock:
            busy = self._writer is not None and self._writer.is_alive()
            if busy or name in self._entries or len(state.keys) < SHORTEST or state.nbytes > self._budget // 2:
                return
            self._writer = threading.Thread(target=self._write, args=(name, state), name="shelf", daemon=True)
            self._writer.start()

    def close(self) -> None:
        """Waits for what is being written."""
        if self._writer is not None:
            self._writer.join()

    def _look(self, path: Path) -> _Entry | None:
        """What a file's first bytes say; None if it is not for us."""
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(_LINE))
                if header["identity"] != self._identity:
                    return None
                return _Entry(path, header, np.frombuffer(file.read(8 * int(header["tokens"])), np.int64))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _read(self, entry: _Entry) -> Saved | None:
        try:
            with entry.path.open("rb") as file:
                file.seek(_LINE)
                data = file.read()
            sound = _digest(data) == entry.header["digest"]
            os.utime(entry.path)
        except OSError:
            sound = False
        if not sound:
            log.warning("%s is damaged: it is thrown away", entry.path)
            self._remove(entry.path)
            return None
        keys, *arrays = _unpacked(data, entry.header["arrays"])
        first, windows = entry.header["first"], self._layers[0]
        return Saved(keys, Window(first, len(keys), tuple(arrays[:windows])), tuple(arrays[windows:]))

    def _write(self, name: str, state: Saved) -> None:
        arrays = [state.keys, *state.window.rows, *state.full]
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        header = {
            "identity": self._identity,
            "tokens": len(state.keys),
            "first": state.window.first,
            "digest": _digest(data),
            "arrays": [[array.dtype.str, *array.shape] for array in arrays],
        }
        line = json.dumps(header).encode()
        path = self._folder / f"{name}{_SUFFIX}"
        temporary = path.with_suffix(".tmp")
        try:
            if len(line) >= _LINE:
                raise OSError("its description is too long")  # noqa: TRY301 - as any other reason
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data) + _LINE)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
                file.write(line.ljust(_LINE))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            log.warning("a system turn's state is not kept: %s", error)
            temporary.unlink(missing_ok=True)
            return
        with self._lock:
            self._entries[name] = _Entry(path, header, state.keys)

    def _make_room(self, nbytes: int) -> None:
        """Removes files, the longest unused first, until so many more bytes fit."""
        there = [(path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob(f"*{_SUFFIX}")]
        total = sum(size for _, size, _ in there)
        for _, size, path in sorted(there):
            if total + nbytes <= self._budget:
                return
            total -= size
            self._remove(path)

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()
        with self._lock:
            self._entries.pop(path.stem, None)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _unpacked(data: bytes, described: list[list[Any]]) -> list[NDArray[Any]]:
    arrays, at = [], 0
    for kind, *shape in described:
        array = np.frombuffer(data, np.dtype(kind), int(np.prod(shape, dtype=np.int64)), at).reshape(shape)
        arrays.append(array)
        at += array.nbytes
    return arrays
