"""Runs requests on the model, one at a time, and makes every one of them end in exactly one answer.

Knows the model and whoever listens by the protocols below.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from edge_runtime import media
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from edge_runtime.daemon.queue import RequestQueue, Running
    from edge_runtime.daemon.requests import Reply
    from edge_runtime.engine.protocol import Info, Piece, Transcript
    from edge_runtime.errors import ErrorCode
    from edge_runtime.settings import LimitsSettings

log = logging.getLogger(__name__)

STOPPED = {"cancelled": "the request was cancelled", "expired": "the request's deadline has passed"}


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


class Listener(Protocol):
    """Who hears the answers."""

    def answer(self, reply: Reply, body: dict[str, Any]) -> None:
        """Sends the one final answer of a request."""

    def delta(self, reply: Reply, body: dict[str, Any]) -> None:
        """Sends a piece of an answer that is still being written."""


def error_body(request_id: str, message: str, code: ErrorCode, **extra: Any) -> dict[str, Any]:
    """The answer that says what went wrong."""
    return {"id": request_id, "error": {"code": code, "message": message, **extra}}


class Worker:
    """Takes requests from the queue until it is closed."""

    def __init__(self, queue: RequestQueue, model: Model, limits: LimitsSettings, listener: Listener) -> None:
        self._queue = queue
        self._model = model
        self._limits = limits
        self._listener = listener

    def run(self) -> None:
        """The thread's body. Only the queue's end ends it."""
        while (running := self._queue.next()) is not None:
            request, started = running.request, time.monotonic()
            try:
                body = self._outcome(running)
                seconds = time.monotonic() - started
                self._listener.answer(request.reply, body)
                log.info("%s %s: %s in %.2f s", request.kind, request.id, _summary(body), seconds)
            except Exception:
                log.exception("the answer to %s could not be sent", request.id)
            self._queue.done(time.monotonic() - started)

    def _outcome(self, running: Running) -> dict[str, Any]:
        """The body of the final answer, whatever happens."""
        request, started = running.request, time.monotonic()
        timer = None
        if request.deadline is not None:
            timer = threading.Timer(max(0.0, request.deadline - started), running.halt, ["expired"])
            timer.daemon = True
            if request.deadline <= started:
                running.halt("expired")
        try:
            if timer:
                timer.start()
            body = {} if running.stop.is_set() else self._body(running)
        except EdgeRuntimeError as error:
            body = error_body(request.id, str(error), error.code)
        except Exception:
            # Whatever went wrong, the requester hears of it and the daemon lives.
            log.exception("%s %s failed", request.kind, request.id)
            body = error_body(request.id, "something went wrong inside; the daemon's log says what", "internal")
        finally:
            if timer:
                timer.cancel()
        if running.reason:
            return error_body(request.id, STOPPED[running.reason], running.reason)
        if "error" not in body:
            body["timing"] = {**body.get("timing", {}), "total_s": round(time.monotonic() - started, 3)}
        return body

    def _body(self, running: Running) -> dict[str, Any]:
        return self._transcribe(running) if running.request.kind == "transcribe" else self._chat(running)

    def _chat(self, running: Running) -> dict[str, Any]:
        request = running.request
        messages = [{**message, "content": self._decoded(message["content"])} for message in request.messages]
        texts: list[str] = []
        last: Piece | None = None
        for piece in self._model.chat(messages, cancel=running.stop, **request.options):
            last = piece
            if piece.text:
                if request.stream:
                    self._listener.delta(request.reply, {"id": request.id, "seq": len(texts), "text": piece.text})
                texts.append(piece.text)
        body: dict[str, Any] = {"id": request.id, "text": "".join(texts)}
        if last is not None:
            body |= {"finish_reason": last.finish_reason, "usage": last.usage, "timing": last.timing}
            body |= {name: value for name in ("thoughts", "tool_calls") if (value := getattr(last, name))}
        return body

    def _transcribe(self, running: Running) -> dict[str, Any]:
        samples = media.load_audio(running.request.audio, self._limits.audio_s)
        transcript = self._model.transcribe(samples, cancel=running.stop)
        text, segments = transcript.text, transcript.segments
        return {"id": running.request.id, "text": text, "segments": segments, "finish_reason": "stop"}

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


def _summary(body: dict[str, Any]) -> str:
    """How it ended, for the log: never what was asked or answered, which is the user's own affair."""
    return str(body["error"]["code"]) if "error" in body else f"{len(body['text'])} characters"
