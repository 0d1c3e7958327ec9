"""A stream of events from an OpenAI-compatible server, over the standard library's HTTP; it can be ended at any moment.

A thread stands guard over each stream: it closes the socket when the request is cancelled, and finds out whether a
silent server still lives.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from edge_runtime.engine.llama.server import is_healthy
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from edge_runtime.engine.llama.server import Address

WATCH_S = 0.02
"""How often a guard looks whether its request is cancelled."""
SILENT_S = 1.0
"""A server that says nothing for so long is asked whether it lives."""
CHANCES = 2
STALLED_S = 900.0
"""A server that lives but computes nothing for so long is given up. The slowest board needs less for a picture."""
CONNECT_S = 10.0


class ServerLost(Exception):  # noqa: N818 - not an error of the caller's
    """The server closed the connection, or no longer lives; the message says which."""


class Guard:
    """Watches one connection from a thread of its own until `done`."""

    def __init__(
        self, connection: http.client.HTTPConnection, cancel: threading.Event | None, lives: Callable[[], bool]
    ) -> None:
        self._connection, self._cancel, self._lives = connection, cancel, lives
        self._done = threading.Event()
        self._heard = self._worked = time.monotonic()
        self.verdict = ""
        """Why the guard closed the connection, if it did."""
        threading.Thread(target=self._watch, name="guard", daemon=True).start()

    def heard(self) -> None:
        """To be called for every sign of life."""
        self._heard = self._worked = time.monotonic()

    def done(self) -> None:
        """Ends the watch."""
        self._done.set()

    def _watch(self) -> None:
        chances = CHANCES
        while not self._done.wait(WATCH_S):
            if self._cancel is not None and self._cancel.is_set():
                return self._close("")
            now = time.monotonic()
            if now - self._worked > STALLED_S:
                return self._close(f"has computed nothing for {STALLED_S:.0f} s")
            if now - self._heard < SILENT_S:
                continue
            if self._probe():
                chances, self._heard = CHANCES, time.monotonic()
            elif (chances := chances - 1) == 0:
                return self._close("hangs")
        return None

    def _probe(self) -> bool:
        """Asks in a thread, so that a cancelled request need not wait for the answer."""
        answers: list[bool] = []
        asking = threading.Thread(target=lambda: answers.append(self._lives()), daemon=True)
        asking.start()
        while asking.is_alive() and not self._done.is_set():
            if self._cancel is not None and self._cancel.is_set():
                return True
            asking.join(WATCH_S)
        return bool(answers and answers[0])

    def _close(self, verdict: str) -> None:
        self.verdict = verdict
        while not self._done.is_set():
            if (sock := self._connection.sock) is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._done.wait(WATCH_S)  # once more, if it was only being opened


def stream(
    address: Address,
    path: str,
    body: dict[str, Any],
    *,
    cancel: threading.Event | None = None,
    lives: Callable[[], bool] | None = None,
) -> Generator[dict[str, Any], None, None]:
    """The events that a server sends in answer to `body`, as JSON objects.

    Args:
        address: The server.
        path: Such as `/v1/chat/completions`.
        body: With `"stream": true`.
        cancel: Closes the connection when set.
        lives: Asks whether the server lives; None: its `/health`.

    Raises:
        EdgeRuntimeError: The server refuses the request; or `cancelled`.
        ServerLost: The server is gone, or hangs.
    """
    connection = address.connect(STALLED_S)
    guard = Guard(connection, cancel, lives or (lambda: is_healthy(address)))
    try:
        headers = {**address.headers(), "Content-Type": "application/json", "Accept": "text/event-stream"}
        connection.request("POST", address.prefix + path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        guard.heard()
        if response.status != http.client.OK:
            raise refusal(response.status, response.read())
        while True:
            line = response.readline()
            if not line:
                raise ConnectionError
            guard.heard()
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise refusal(http.client.INTERNAL_SERVER_ERROR, data)
                yield event
                if event.get("stop") is True:  # the end, in llama.cpp's own dialect
                    return
    except (OSError, ValueError, http.client.HTTPException):
        if cancel is not None and cancel.is_set():
            raise EdgeRuntimeError("the request was cancelled", "cancelled") from None
        raise ServerLost(guard.verdict or "ended in the middle of a request") from None
    finally:
        guard.done()
        connection.close()


def ask(address: Address, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """A server's one answer: to `body`, or to a GET where there is none.

    Raises:
        EdgeRuntimeError: The server refuses.
        ServerLost: It is gone, or gives no JSON.
    """
    connection = address.connect(CONNECT_S)
    try:
        data = None if body is None else json.dumps(body).encode()
        headers = {**address.headers(), "Content-Type": "application/json"}
        connection.request("GET" if data is None else "POST", address.prefix + path, data, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != http.client.OK:
            raise refusal(response.status, answer)
        found: dict[str, Any] = json.loads(answer)
    except (OSError, ValueError, http.client.HTTPException):
        raise ServerLost("cannot be reached") from None
    else:
        return found
    finally:
        connection.close()


def refusal(status: int, body: bytes) -> EdgeRuntimeError:
    """A server's error as ours."""
    try:
        error = json.loads(body)["error"]
        message, kind = str(error.get("message", "")), str(error.get("type", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        error, message, kind = {}, body[:200].decode("utf-8", errors="replace"), ""
    if kind == "exceed_context_size_error":
        return EdgeRuntimeError(
            f"prompt is {error.get('n_prompt_tokens')} tokens, the context is {error.get('n_ctx')}: shorten the prompt "
            "or load the model with a larger context",
            "too_large",
        )
    if status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
        return EdgeRuntimeError("the server does not accept our key", "internal")
    if status == http.client.TOO_MANY_REQUESTS or "busy" in kind:
        return EdgeRuntimeError(message or "the server is busy", "busy")
    bad = http.client.BAD_REQUEST <= status < http.client.INTERNAL_SERVER_ERROR
    return EdgeRuntimeError(f"llama.cpp: {message or f'status {status}'}", "bad_request" if bad else "internal")
