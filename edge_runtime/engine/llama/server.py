"""A llama.cpp server as a child process: started, watched, started again when it dies, never left behind.

One thread owns the child, because the kernel ties a child's life to the thread that started it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import logging
import os
import re
import secrets
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.machine import free_port, readable

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.engine.llama.options import Options
    from edge_runtime.engine.llama.program import Program

log = logging.getLogger(__name__)

POLL_S = 0.05
PROBE_S = 2.0
"""A living server answers this soon whether it lives, however much it has to compute."""
PROGRESS_S = 5.0
"""Between two lines in the log while a model is being loaded."""
LONGEST_PAUSE_S = 30.0
GIVEN_UP_AFTER = 5
"""Crashes in a row after which requests are refused at once while it is tried again."""
BIND_TRIES = 3
LAST_WORDS_S = 1.0
"""A child's last words are read within this time."""

_LINE = re.compile(r"^(?:[\d.]+ )?([DIWE]) (.*)$")
_LEVELS = {"D": logging.DEBUG, "I": logging.DEBUG, "W": logging.INFO, "E": logging.WARNING}
_MEMORY = re.compile(r"alloc|out of memory|not enough memory|temporarily unavailable", re.IGNORECASE)
_DAMAGED = re.compile(
    r"corrupt|invalid magic|not within the file|failed to read|unexpectedly reached end", re.IGNORECASE
)
_ARCHITECTURE = re.compile(r"unknown model architecture: '([^']*)'")


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: Name or number.
        port: TCP.
        key: The bearer token, if one is wanted.
        run: Which run of the server this is; counts up.
        tls: Whether to speak HTTPS.
        prefix: What comes before `/v1/...` in its paths.
    """

    host: str
    port: int
    key: str | None = None
    run: int = 0
    tls: bool = False
    prefix: str = ""

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection that is made with the first request."""
        kind = http.client.HTTPSConnection if self.tls else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout_s)

    def headers(self) -> dict[str, str]:
        """Headers of each request."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def is_healthy(address: Address) -> bool:
    """Whether a server says that it can answer."""
    connection = address.connect(PROBE_S)
    try:
        connection.request("GET", f"{address.prefix}/health", headers=address.headers())
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Server:
    """One llama.cpp server and its thread. `close` when done; the kernel does it for a parent that is killed."""

    def __init__(
        self,
        program: Program,
        options: Options,
        *,
        size: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Starts it and waits until it answers.

        Args:
            program: What to run.
            options: How.
            size: Bytes that it reads when it starts, for messages about the progress.
            progress: Called with the share that is loaded, 0 to 1, several times a second; at the first start only.

        Raises:
            EdgeRuntimeError: It ends instead, and why.
        """
        self._program, self._options, self._size, self._progress = program, options, size, progress
        self._key = secrets.token_urlsafe(24)
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._address: Address | None = None
        self._error: EdgeRuntimeError | None = None
        self._crashes, self._runs = 0, 0
        self._closing = threading.Event()
        self._hung = False
        self._listener: threading.Thread | None = None
        self._words: collections.deque[str] = collections.deque(maxlen=40)
        self._thread = threading.Thread(target=self._keep, name="llama.cpp", daemon=True)
        self._thread.start()
        try:
            self.address()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """Of the running child."""
        return self._process.pid if self._process else None

    def address(self, cancel: threading.Event | None = None) -> Address:
        """Where it listens; waits while it is being started.

        Raises:
            EdgeRuntimeError: It cannot be started, crashes again and again, or `cancelled`.
        """
        with self._changed:
            while True:
                if self._address is not None:
                    return self._address
                if self._error is not None:
                    raise EdgeRuntimeError(str(self._error), self._error.code)
                if self._closing.is_set():
                    raise EdgeRuntimeError("the model is closed")
                if cancel is not None and cancel.is_set():
                    raise EdgeRuntimeError("the request was cancelled", "cancelled")
                self._changed.wait(POLL_S)

    def broken(self, address: Address, why: str, *, wait_s: float = 1.0) -> None:
        """A request met no answer at `address`: if that run has not ended by itself, it is ended and begun anew."""
        with self._changed:
            if self._address != address:
                return  # noticed already
        process = self._process
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        if process.poll() is None and self._address == address:
            self._hung = True
            log.warning("llama.cpp's server %s: it is ended and started again", why)
            _end(process)
        with self._changed:
            self._changed.wait_for(lambda: self._address != address, PROBE_S)

    def worked(self) -> None:
        """A request was answered: whatever crashed before, pauses begin anew."""
        self._crashes = 0

    def close(self) -> None:
        """Ends the child; a second call does nothing."""
        self._closing.set()
        if (process := self._process) is not None:
            _end(process)
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def _keep(self) -> None:
        """The thread's body."""
        while not self._closing.is_set():
            try:
                address = self._start()
            except EdgeRuntimeError as error:
                if self._closing.is_set() or not self._runs:
                    self._set(error=error)
                    return
                self._crashed(str(error))
                continue
            self._set(address=address)
            assert self._process is not None  # noqa: S101 - for mypy
            code = self._process.wait()
            self._set()
            if not self._closing.is_set():
                self._crashed(self._reason(code))

    def _crashed(self, why: str) -> None:
        """Says so and pauses, longer each time: 0, 1, 2, 4 ... seconds."""
        self._crashes += 1
        pause = min(LONGEST_PAUSE_S, 2.0 ** (self._crashes - 2)) if self._crashes > 1 else 0.0
        log.warning("llama.cpp's server ended (%s); it is started again in %.0f s", why, pause)
        if self._crashes >= GIVEN_UP_AFTER:
            self._set(error=EdgeRuntimeError(f"llama.cpp's server ends again and again: {why}", "internal"))
        self._closing.wait(pause)

    def _set(self, address: Address | None = None, error: EdgeRuntimeError | None = None) -> None:
        with self._changed:
            self._address, self._error = address, error
            self._runs += address is not None
            self._changed.notify_all()

    def _start(self) -> Address:
        """Starts the child and waits until it is healthy.

        Raises:
            EdgeRuntimeError: It ends before.
        """
        code: int | None = 0
        for left in reversed(range(BIND_TRIES)):
            address = Address("127.0.0.1", free_port(), self._key, self._runs + 1)
            process = self._process = self._spawn(address.port)
            if self._closing.is_set():
                _end(process)
            code = self._wait_healthy(process, address)
            if code is None:
                return address
            # Somebody else was quicker to take the port.
            if not (left and any("bind" in line for line in self._words)):
                break
        raise EdgeRuntimeError(self._reason(code or 0), "internal")

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        self._words.clear()
        # With threads that spin while they wait, one busy neighbour takes two thirds of the speed.
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "LLAMA_API_KEY": self._key}
        try:
            process = subprocess.Popen(
                self._program.command(self._options.arguments(port)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise EdgeRuntimeError(f"{self._program} cannot be started: {error.strerror or error}") from None
        self._listener = threading.Thread(target=self._listen, args=(process,), name="llama.cpp's log", daemon=True)
        self._listener.start()
        assert process.stdin is not None  # noqa: S101 - for mypy
        with contextlib.suppress(OSError), process.stdin as stdin:
            if self._program.path is None:
                stdin.write(json.dumps(self._options.plain() | {"port": port, "key": self._key}).encode())
        return process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """The child's lines go to our log. They hold nothing of what is asked or answered."""
        assert process.stdout is not None  # noqa: S101 - for mypy
        with process.stdout as output:
            for raw in output:
                line = raw.decode("utf-8", errors="replace").strip()
                match = _LINE.match(line)
                level, text = match.groups() if match else ("I", line)
                if text:
                    self._words.append(f"{level} {text}")
                    # A server at work may say what it is told; only what it says while it loads is for all to read.
                    log.log(_LEVELS[level] if self._address is None else logging.DEBUG, "%s", text)

    def _wait_healthy(self, process: subprocess.Popen[bytes], address: Address) -> int | None:
        """None when it is; else its exit status."""
        started = told = time.monotonic()
        while (code := process.poll()) is None:
            if is_healthy(address):
                log.info("llama.cpp serves %s after %.1f s", self._options.model.name, time.monotonic() - started)
                return None
            read = _bytes_read(process.pid)
            if self._progress is not None and self._size and not self._runs:
                self._progress(min(1.0, read / self._size))
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                done = f"{readable(read)} of {readable(self._size)} read" if self._size else "reading"
                log.info("%s is being loaded: %s after %.0f s", self._options.model.name, done, told - started)
            time.sleep(POLL_S)
        return code

    def _reason(self, code: int) -> str:
        """One line on why the child ended, from its last words."""
        if self._listener is not None:
            self._listener.join(LAST_WORDS_S)
        name = self._options.model.name
        words = [line[2:] for line in self._words]
        text = "\n".join(words)
        if match := _ARCHITECTURE.search(text):
            return f"{name}: {architecture_problem(match[1], self._program)}"
        if self._hung:
            self._hung = False
            return "it hung"
        if code == -signal.SIGKILL:
            return f"the system killed it while it ran {name}, most likely for want of memory"
        if _MEMORY.search(text):
            return f"{name} does not fit the memory that is free"
        if _DAMAGED.search(text):
            return f"{name} is damaged: {next(word for word in words if _DAMAGED.search(word))}"
        errors = [line[2:] for line in self._words if line.startswith("E ")]
        last = errors[0] if errors else words[-1] if words else ""
        if code < 0:
            return f"signal {-code}, {signal.Signals(-code).name}{f': {last}' if errors else ''}"
        return f"llama.cpp cannot run {name}: {last or f'exit status {code}'}"


def architecture_problem(architecture: str, program: object) -> str:
    """What to say of an architecture that llama.cpp does not know."""
    if "diffusion" in architecture:
        return (
            f"{program} cannot run diffusion models of the Gemma family ({architecture!r}); run a Gemma 4 that writes "
            "word by word, such as 26B A4B"
        )
    return f"{program} does not know the architecture {architecture!r}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills it: a server has nothing to lose, and SIGKILL ends even a stopped one."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _bytes_read(pid: int) -> int:
    """What a process has read from files or mapped so far."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as file:  # noqa: PTH123 - twenty times a second
            read = int(next(line for line in file if line.startswith("rchar")).split()[1])
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:  # noqa: PTH123
            return max(read, int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, StopIteration):
        return 0
