"""A helper program whose output is read with a time limit, and which can always be ended.

Drivers and media libraries hang, leak and crash; in a process of their own they take nobody with them.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from edge_runtime.perception.source import SourceLost

if TYPE_CHECKING:
    from collections.abc import Sequence

ERROR_TAIL = 2000
"""Bytes of the program's complaints that are kept."""
CHUNK = 2**16


class Child:
    """One run of a program. One thread reads; `kill` may be called from any."""

    def __init__(self, argv: Sequence[str], *, stdin: bool = False) -> None:
        """Starts it.

        Args:
            argv: The program and its arguments; no shell.
            stdin: Whether we write to it; else it reads nothing.

        Raises:
            SourceLost: It is not installed or cannot be started.
        """
        try:
            self.process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                process_group=0,  # ^C in a terminal is ours to pass on
            )
        except OSError as error:
            raise SourceLost(f"{argv[0]} cannot be started: {error.strerror or error}") from None
        self._name = Path(argv[0]).name
        assert self.process.stdout is not None  # noqa: S101 - for mypy
        assert self.process.stderr is not None  # noqa: S101
        self.output = self._out = self.process.stdout.fileno()
        self._err = self.process.stderr.fileno()
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._poll.register(self._err, select.POLLIN)
        self._errors, self._listening = b"", True
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, count: int, timeout_s: float) -> bytes:
        """Exactly `count` bytes.

        Raises:
            SourceLost: It ended or was silent for `timeout_s`.
        """
        while len(self._buffer) < count:
            more = self._receive(timeout_s)
            if not more:
                raise SourceLost(self.last_words() or f"{self._name} ended")
            self._buffer += more
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def read_line(self, timeout_s: float) -> bytes:
        """Up to and with the next newline, 64 kB at most.

        Raises:
            SourceLost: As in `read`.
        """
        line = b""
        while not line.endswith(b"\n") and len(line) < CHUNK:
            line += self.read(1, timeout_s)
        return line

    def read_some(self, timeout_s: float) -> bytes:
        """What it wrote, up to 64 kB; empty when it has closed its output.

        Raises:
            SourceLost: It wrote nothing for `timeout_s`.
        """
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            return data
        return self._receive(timeout_s)

    def write(self, data: bytes) -> None:
        """Hands it `data`; waits as long as it takes it.

        Raises:
            SourceLost: It reads no more.
        """
        assert self.process.stdin is not None  # noqa: S101 - asked for with stdin=True
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.process.stdin.fileno(), view) :]
        except (OSError, ValueError):
            raise SourceLost(self.last_words() or f"{self._name} ended") from None

    def end_input(self) -> None:
        """Says that nothing more will be written."""
        assert self.process.stdin is not None  # noqa: S101
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def last_words(self) -> str:
        """The last line of its complaints, "" where it made none."""
        while select.select([self._err], [], [], 0)[0] and self._drain_errors():
            pass
        lines = [line.strip() for line in self._errors.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def kill(self) -> None:
        """Ends it now, from any thread; a read that waits returns."""
        with contextlib.suppress(OSError):
            self.process.kill()

    def close(self) -> None:
        """Ends it and frees everything; by the thread that reads."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: the kernel ends it when it may
            self.process.wait(1.0)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _drain_errors(self) -> bool:
        data = os.read(self._err, CHUNK)
        if not data and self._listening:
            self._poll.unregister(self._err)
            self._listening = False
        self._errors = (self._errors + data)[-ERROR_TAIL:]
        return bool(data)

    def _receive(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            ready = self._poll.poll(max(0, round(1000 * left))) if left > 0 else []
            if not ready:
                raise SourceLost(f"silent for {timeout_s:g} s")
            for descriptor, _ in ready:
                if descriptor == self._out:
                    return os.read(self._out, CHUNK)
                self._drain_errors()
