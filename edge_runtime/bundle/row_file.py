"""A file whose rows are read one at a time, in no order."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from pathlib import Path


class RowFile:
    """An open file; safe to read from several threads. The kernel is told that reads are random."""

    def __init__(self, path: Path) -> None:
        """Opens the file at `path`.

        Raises:
            EdgeRuntimeError: it cannot be opened.
        """
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise EdgeRuntimeError(f"{path}: {error.strerror}") from error
        self._path = path
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _ask(self, offset: int, count: int) -> None:
        """Has the kernel read these bytes, without waiting for them."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, count, os.POSIX_FADV_WILLNEED)

    def _bytes(self, row: int, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, of the row called `row` in errors.

        Raises:
            EdgeRuntimeError: they cannot be read, or the file ends before.
        """
        try:
            data = os.pread(self._descriptor, count, offset)
        except OSError as error:
            raise EdgeRuntimeError(f"{self._path}: row {row}: {error.strerror}", code="internal") from None
        if len(data) != count:
            raise EdgeRuntimeError(f"{self._path}: row {row} is cut off", code="internal")
        return data

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
