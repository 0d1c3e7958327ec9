"""Runs requests on the model, one at a time, and makes every one of them end in exactly one answer.

Knows the model and the books by the protocols below.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

from edge_runtime import media
from edge_runtime.daemon.sessions import Conversation, Sessions, compose, turn_of
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator

    from edge_runtime.daemon.admission import Admission, Running, Ticket
    from edge_runtime.daemon.requests import Parser, Request
    from edge_runtime.engine.protocol import Info, Piece, Transcript
    from edge_runtime.errors import ErrorCode
    from edge_runtime.settings import LimitsSettings

log = logging.getLogger(__name__)

STOPPED = {"cancelled": "the request was cancelled", "expired": "the request's deadline has passed"}
FAILED = "something went wrong inside; the daemon's log says what"


class Model(Protocol):
    """What the daemon needs of `edge_runtime.load()`."""

    @property
    def info(self) -> Info:
        """Name, modalities and context limit."""

    @property
    def chat(self) -> Callable[..., Generator[Piece, None, None]]:
        """Answers a conversation piece by piece; the arguments are those of `engine.model.Model.chat`."""

    def transcribe(self, source: Any, *, cancel: threading.Event | None) -> Transcript:
        """Writes down speech."""

    def close(self) -> None:
        """Frees the model."""


class Books(Protocol):
    """Who keeps the requests and hears the answers."""

    def begin(self, ticket: Ticket) -> bytes:
        """Counts a start of the request; its payload."""

    def finish(self, ticket: Ticket, body: dict[str, Any]) -> None:
        """Keeps and sends the one final answer of a request."""

    def hand_back(self, ticket: Ticket) -> None:
        """Keeps the request for the next start of the daemon."""

    def delta(self, ticket: Ticket, body: dict[str, Any]) -> None:
        """Sends a piece of an answer that is still being written."""


def error_body(request_id: str, message: str, code: ErrorCode, **extra: Any) -> dict[str, Any]:
    """The answer that says what went wrong."""
    return {"id": request_id, "error": {"code": code, "message": message, **extra}}


class Worker:
    """Takes requests from the waiting room until it is closed."""

    def __init__(self, admission: Admission, model: Model, parser: Parser, books: Books) -> None:
        self._admission = admission
        self._model = model
        self._parser = parser
        self._books = books
        self._sessions = Sessions(parser.settings.limits, model.info["context"])

    @property
    def _limits(self) -> LimitsSettings:
        return self._parser.settings.limits

    def run(self) -> None:
        """The thread's body. Only the end of the waiting room ends it."""
        while (running := self._admission.next()) is not None:
            ticket, started = running.ticket, time.monotonic()
            body = self._outcome(running)
            try:
                self._end(ticket, body)
            except Exception:
                log.exception("the answer to %s could not be kept", ticket.id)
                body = error_body(ticket.id, FAILED, "internal")
                with contextlib.suppress(Exception):  # then it stays stored, and is tried again at the next start
                    self._end(ticket, body)
            self._log(ticket, started, "kept for the next start" if body is None else _summary(body))
            self._admission.done(time.monotonic() - started)

    def _end(self, ticket: Ticket, body: dict[str, Any] | None) -> None:
        if body is None:
            self._books.hand_back(ticket)
        else:
            self._books.finish(ticket, body)

    def _outcome(self, running: Running) -> dict[str, Any] | None:
        """The body of the final answer, whatever happens; None when the daemon stops before there is one."""
        ticket, started = running.ticket, time.monotonic()
        try:
            request = self._parser.parse(ticket.kind, self._books.begin(ticket))
            body = {} if running.stop.is_set() else self._body(running, request)
            times = {"wait_s": started - ticket.received, "total_s": time.monotonic() - started}
            body["timing"] = (body.get("timing") or {}) | {name: round(value, 3) for name, value in times.items()}
        except EdgeRuntimeError as error:
            body = error_body(ticket.id, str(error), error.code)
        except Exception:
            # Whatever went wrong, the requester hears of it and the daemon lives.
            log.exception("%s %s failed", ticket.kind, ticket.id)
            body = error_body(ticket.id, FAILED, "internal")
        if running.reason == "stopping":
            return None
        if running.reason is not None:
            return error_body(ticket.id, STOPPED[running.reason], running.reason)
        return body

    def _body(self, running: Running, request: Request) -> dict[str, Any]:
        return self._transcribe(running, request) if request.kind == "transcribe" else self._chat(running, request)

    def _chat(self, running: Running, request: Request) -> dict[str, Any]:
        ticket = running.ticket
        conversation = self._sessions.recall(ticket.client, request.session) if request.session else Conversation()
        decoded = [{**message, "content": self._decoded(message["content"])} for message in request.messages]
        texts: list[str] = []
        last: Piece | None = None
        for piece in self._pieces(running, request, conversation, decoded):
            last = piece
            if piece.text:
                if request.stream:
                    self._books.delta(ticket, {"id": ticket.id, "seq": len(texts), "text": piece.text})
                texts.append(piece.text)
        body: dict[str, Any] = {"id": ticket.id, "text": "".join(texts)}
        if last is not None:
            body |= {"finish_reason": last.finish_reason, "usage": last.usage, "timing": last.timing}
            body |= {name: value for name in ("thoughts", "tool_calls") if (value := getattr(last, name))}
        if request.session and not running.stop.is_set():
            self._remember(ticket, request, conversation, body)
        return body

    def _pieces(
        self, running: Running, request: Request, conversation: Conversation, messages: list[dict[str, Any]]
    ) -> Generator[Piece, None, None]:
        """The model's answer; where the conversation does not fit before the question, its older half is dropped."""
        while True:
            whole = compose(conversation, messages, tools=bool(request.options.get("tools")))
            try:
                yield from self._model.chat(whole, cancel=running.stop, **request.options)
            except EdgeRuntimeError as error:
                if error.code != "too_large" or not conversation.turns:  # raised before the first piece
                    raise
                conversation.turns = conversation.turns[len(conversation.turns) // 2 + 1 :]
            else:
                return

    def _remember(self, ticket: Ticket, request: Request, conversation: Conversation, body: dict[str, Any]) -> None:
        """Adds the turn. One that ended in a tool call has no answer in words, and templates want one."""
        if request.session is None or not body["text"]:
            return
        usage = body.get("usage") or {"prompt_tokens": 0, "completion_tokens": 0}
        before = sum(turn.tokens for turn in conversation.turns)
        tokens = max(0, usage["prompt_tokens"] + usage["completion_tokens"] - before)
        conversation.turns = [*conversation.turns, turn_of(request.messages[-1], body["text"], tokens)]
        if len(request.messages) > 1:
            conversation.system = request.messages[0]["content"][0]["text"]
        self._sessions.remember(ticket.client, request.session, conversation)

    def _transcribe(self, running: Running, request: Request) -> dict[str, Any]:
        samples = media.load_audio(request.audio, self._limits.audio_s)
        transcript = self._model.transcribe(samples, cancel=running.stop)
        text, segments = transcript.text, transcript.segments
        return {"id": running.ticket.id, "text": text, "segments": segments, "finish_reason": "stop"}

    def _decoded(self, content: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Content with the bytes of images and recordings decoded, within the limits."""
        decoded = []
        for item in content:
            if item["type"] == "image":
                decoded.append({"type": "image", "image": media.load_image(item["image"], self._limits.image_pixels)})
            elif item["type"] == "audio":
                decoded.append({"type": "audio", "audio": media.load_audio(item["audio"], self._limits.audio_s)})
            else:
                decoded.append(item)
        return decoded

    @staticmethod
    def _log(ticket: Ticket, started: float, outcome: str) -> None:
        """One line a request: never what was asked or answered, which is the user's own affair."""
        waited, took = started - ticket.received, time.monotonic() - started
        log.info("%s %s: %s in %.2f s, after waiting %.2f s", ticket.kind, ticket.id, outcome, took, waited)


def _summary(body: dict[str, Any]) -> str:
    return str(body["error"]["code"]) if "error" in body else f"{len(body['text'])} characters"
