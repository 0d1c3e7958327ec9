"""Reads safetensors checkpoints, one tensor (or some rows of one) at a time.

Format: 8 bytes little-endian length, a JSON header of that length, the data. Only the parts that are asked for are
read and converted to float32, so that a checkpoint of any size needs little memory; a memory map would do too, but its
pages count as the process's own until the system takes them back.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
_HEADER_LIMIT = 100_000_000
_LARGE = 1 << 20  # bytes of a piece that is not kept in the page cache
_WINDOW = 1 << 22  # bytes that are read at a time to pick rows from


@dataclass(frozen=True)
class Tensor:
    """A stored tensor, read from its file when asked."""

    name: str
    dtype: str
    """As safetensors spells it: "BF16", "F32", ..."""
    shape: tuple[int, ...]
    file: BinaryIO
    offset: int
    """Of its first byte in the file."""

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows start..stop as float32 (the whole tensor by default; a scalar as shape [])."""
        return self._widened(self.stored(start, stop))

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The given rows (at least one), in their order, as float32; best when they lie near each other."""
        order = np.argsort(rows, kind="stable")
        wanted = rows[order]
        window = max(1, _WINDOW // (math.prod(self.shape[1:]) * self._stored().itemsize))
        found: NDArray[Any] | None = None
        done = 0
        while done < len(wanted):
            # All that lies between rows is read with them, but never more than a window of it.
            first = int(wanted[done])
            after = int(np.searchsorted(wanted, first + window))
            part = self.stored(first, int(wanted[after - 1]) + 1)
            found = np.empty((len(rows), *self.shape[1:]), part.dtype) if found is None else found
            found[order[done:after]] = part[wanted[done:after] - first]
            done = after
        assert found is not None  # noqa: S101  there is at least one row
        return self._widened(found)

    def integers(self) -> NDArray[np.int64]:
        """The whole tensor as int64."""
        return self.stored().astype(np.int64)

    def round(self, value: float) -> float:
        """`value` as this tensor's dtype holds it."""
        if self.dtype == "F16":
            return float(np.float16(value))
        if self.dtype == "BF16":
            # Round half to even on the 16 bits that bfloat16 drops.
            bits = int(np.float32(value).view(np.uint32))
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            return float(np.uint32(bits).view(np.float32))
        return float(np.float32(value))

    def called(self, name: str) -> Tensor:
        """The same under another name."""
        return replace(self, name=name)

    def _stored(self) -> np.dtype[Any]:
        dtype = _DTYPES.get(self.dtype)
        if dtype is None:
            raise EdgeRuntimeError(f"{self.name} is stored as {self.dtype}; {', '.join(_DTYPES)} can be read")
        return dtype

    def _widened(self, part: NDArray[Any]) -> NDArray[np.float32]:
        if self.dtype == "BF16":
            widened = part.astype(np.uint32)
            widened <<= np.uint32(16)
            return widened.view(np.float32)
        return part.astype(np.float32)

    def stored(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows start..stop as they are in the file; bfloat16 as uint16."""
        dtype, shape = self._stored(), self.shape
        row = dtype.itemsize * math.prod(shape[1:])
        if shape:
            start, stop, _ = slice(start, stop).indices(shape[0])
            shape = (max(0, stop - start), *shape[1:])
        count = dtype.itemsize * math.prod(shape)
        data = _read(self.file, self.offset + start * row, count)
        if len(data) != count:
            raise EdgeRuntimeError(f"{self.file.name} ends within {self.name}")
        return np.frombuffer(data, dtype).reshape(shape)


class Checkpoint:
    """All tensors of a checkpoint folder, in one file or in shards. A context manager: leaving it closes the files."""

    def __init__(self, folder: Path) -> None:
        """Opens the files.

        Raises:
            EdgeRuntimeError: `folder` holds no safetensors, or one of its files is damaged.
        """
        self.folder = folder
        self._tensors: dict[str, Tensor] = {}
        self._files = contextlib.ExitStack()
        for path in _files(folder):
            self._add(path)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._tensors.keys()

    def values(self) -> int:
        """Number of values in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self._tensors.values())

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor called `name`.

        Raises:
            EdgeRuntimeError: there is none, or its shape is not the `shape` that config.json implies.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise EdgeRuntimeError(f"{self.folder}: the checkpoint has no tensor {name}")
        if shape is not None and tensor.shape != shape:
            raise EdgeRuntimeError(
                f"{self.folder}: {name} has shape {list(tensor.shape)}, its config.json implies {list(shape)}"
            )
        return tensor

    def replace(self, tensor: Tensor, parts: Iterable[str] = ()) -> None:
        """Puts `tensor` in the place of the one of its name, or of those called `parts` that it is made of."""
        for part in parts:
            del self._tensors[part]
        self._tensors[tensor.name] = tensor

    def drop(self, name: str) -> None:
        """Forgets a tensor."""
        del self._tensors[name]

    def _add(self, path: Path) -> None:
        try:
            file = path.open("rb", buffering=0)
        except OSError as error:
            raise EdgeRuntimeError(f"{path}: {error.strerror}") from error
        self._files.enter_context(file)
        try:
            size = path.stat().st_size
            header, base = _header(file, size)
            for name, entry in header.items():
                self._tensors[name] = _tensor(name, entry, file, base, size)
        except (ValueError, KeyError, TypeError) as error:
            raise EdgeRuntimeError(f"{path} is damaged or no safetensors file: {error}") from error

    def close(self) -> None:
        """Closes the files; tensors can no longer be read."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise EdgeRuntimeError(f"{folder} is no folder")
    index = folder / _INDEX
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise EdgeRuntimeError(f"{index} is damaged: {error}") from error
        return [folder / Path(shard).name for shard in shards]
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    raise EdgeRuntimeError(f"{folder} holds no {_SINGLE} (nor {_INDEX}): it is no Hugging Face checkpoint")


def _read(file: BinaryIO, offset: int, count: int) -> bytearray:
    """Bytes at an offset; fewer only at the end of the file."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    # One pread returns 2 GiB at most.
    while done < count and (got := os.preadv(file.fileno(), [view[done:]], offset + done)):
        done += got
    view.release()
    del data[done:]
    if count >= _LARGE and hasattr(os, "posix_fadvise"):
        # Most of a checkpoint is read once: it need not push out of memory what other programs keep there.
        os.posix_fadvise(file.fileno(), offset, count, os.POSIX_FADV_DONTNEED)
    return data


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(_read(file, 0, 8), "little")
    if length > min(size - 8, _HEADER_LIMIT):
        raise ValueError("its header is longer than the file")
    header = json.loads(_read(file, 8, length))
    if not isinstance(header, dict):
        raise TypeError("its header is no table of tensors")
    header.pop("__metadata__", None)
    return header, 8 + length


def _tensor(name: str, entry: dict[str, Any], file: BinaryIO, base: int, size: int) -> Tensor:
    shape = tuple(int(n) for n in entry["shape"])
    begin, end = entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"])
    expected = end - begin if dtype is None else math.prod(shape) * dtype.itemsize
    if not 0 <= begin <= end <= size - base or end - begin != expected:
        raise ValueError(f"the data of {name} do not lie within the file")
    return Tensor(name, str(entry["dtype"]), shape, file, base + begin)
