"""Checksums of a file that is still being written, in a thread that stays behind the writer.

What was written a moment ago is still in memory, so the finished file needs no second reading from the disk.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from edge_runtime.bundle.checksums import BLOCK, Meter
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.checksums import Measured

_STEP = 1 << 20  # bytes below which it is not worth waking the thread


class Follower:
    """Measures the file at `path` behind its writer. A context manager: leaving it ends the thread.

    Example:
        with Follower(path) as follower:
            file.write(data)
            file.flush()
            follower.upto(file.tell())
            measured = follower.finish(file.tell())
    """

    def __init__(self, path: Path, block: int = BLOCK) -> None:
        """Opens the file, which must be there.

        Args:
            path: The file.
            block: Bytes that share a CRC-32.
        """
        self._file = path.open("rb", buffering=0)
        self._meter = Meter(block)
        self._pool = ThreadPoolExecutor(1, "checksums")
        self._tasks: list[Future[None]] = []
        self._asked = self._done = 0
        self._closing = False

    def upto(self, end: int) -> None:
        """Says that the file's first `end` bytes are written and will stay as they are."""
        if end - self._asked >= _STEP:
            self._ask(end)

    def finish(self, size: int) -> Measured:
        """What the whole file of `size` bytes is, once the thread has come to its end.

        Raises:
            EdgeRuntimeError: the file is shorter.
        """
        self._ask(size)
        for task in self._tasks:
            task.result()
        return self._meter.result()

    def close(self) -> None:
        """Ends the thread, wherever it is, and closes the file."""
        self._closing = True
        self._pool.shutdown(cancel_futures=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, end: int) -> None:
        self._tasks.append(self._pool.submit(self._follow, end))
        self._asked = end

    def _follow(self, end: int) -> None:
        while self._done < end and not self._closing:
            data = self._file.read(min(_STEP, end - self._done))
            if not data:
                raise EdgeRuntimeError(f"{self._file.name} ends before byte {end}", code="internal")
            self._meter.update(data)
            self._done += len(data)
