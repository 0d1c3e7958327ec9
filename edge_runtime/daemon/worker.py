"""Runs requests on the model, one at a time, and makes every one of them end in exactly one answer.

Knows the model and the books by the protocols below.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_runtime import media
from edge_runtime.daemon.senses import Media, check_said, heard
from edge_runtime.daemon.sessions import Conversation, Sessions, compose, turn_of
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.utterance import Utterance

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from edge_runtime.daemon.admission import Admission, Running, Ticket
    from edge_runtime.daemon.requests import Request
    from edge_runtime.daemon.senses import Senses
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

    @property
    def transcribe(self) -> Callable[..., Transcript]:
        """Writes down speech; the arguments are those of `engine.model.Model.transcribe`."""

    def close(self) -> None:
        """Frees the model."""


class Books(Protocol):
    """Who keeps the requests and hears the answers."""

    def begin(self, ticket: Ticket) -> Request:
        """Counts a start of the request, and gives it.

        Raises:
            EdgeRuntimeError: It cannot be read.
        """

    def finish(self, ticket: Ticket, body: dict[str, Any]) -> None:
        """Keeps and sends the one final answer of a request."""

    def hand_back(self, ticket: Ticket) -> None:
        """The daemon ends: the request is not answered by this run of it."""

    def delta(self, ticket: Ticket, body: dict[str, Any]) -> None:
        """Sends a piece of an answer that is still being written."""


def error_body(request_id: str, message: str, code: ErrorCode, **extra: Any) -> dict[str, Any]:
    """The answer that says what went wrong."""
    return {"id": request_id, "error": {"code": code, "message": message, **extra}}


class Worker:
    """Takes requests from the waiting room until it is closed."""

    def __init__(
        self, admission: Admission, model: Model, limits: LimitsSettings, senses: Senses | None = None
    ) -> None:
        """Args: whom it takes from; who answers; what is taken; microphones, cameras and voice, if there are any."""
        self._admission = admission
        self._model = model
        self._media = Media(senses, limits)
        self._senses = senses
        self._sessions = Sessions(limits, model.info["context"])

    def limit(self, limits: LimitsSettings) -> None:
        """Other limits from the next request on."""
        self._media.limits = limits
        self._sessions.limit(limits)

    def forget(self, client: str, session: str) -> None:
        """Drops a conversation; from any thread."""
        self._sessions.forget(client, session)

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
            if body is None:
                log.info("%s %s is kept for the next start", ticket.kind, ticket.id)
            self._admission.done(time.monotonic() - started)

    @staticmethod
    def _end(ticket: Ticket, body: dict[str, Any] | None) -> None:
        if body is None:
            ticket.books.hand_back(ticket)
        else:
            ticket.books.finish(ticket, body)

    def _outcome(self, running: Running) -> dict[str, Any] | None:
        """The body of the final answer, whatever happens; None when the daemon stops before there is one."""
        ticket, started = running.ticket, time.monotonic()
        try:
            request = ticket.books.begin(ticket)
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
        texts: list[str] = []
        tell = self._teller(ticket)
        last: Piece | None = None
        with self._aloud(request.aloud, running) as say:
            for piece in self._answer(running, request, conversation):
                last = piece
                apart = _apart(request, piece)
                if request.stream and (piece.text or apart):
                    tell(piece.text, **apart)
                if piece.text:
                    say(piece.text)
                    texts.append(piece.text)
        body: dict[str, Any] = {"id": ticket.id, "text": "".join(texts)}
        if last is not None:
            body |= {"finish_reason": last.finish_reason, "usage": last.usage, "timing": last.timing}
            more = ("thoughts", "tool_calls", "logprobs", "note")
            body |= {name: value for name in more if (value := getattr(last, name))}
        if request.session and not running.stop.is_set():
            self._remember(ticket, request, conversation, body)
        return body

    def _aloud(self, microphone: str | None, running: Running) -> AbstractContextManager[Callable[[str], None]]:
        """Who takes the answer's text to read it aloud."""
        if self._senses is None:
            return contextlib.nullcontext(lambda _: None)
        return self._senses.aloud(microphone, running)

    def _answer(self, running: Running, request: Request, conversation: Conversation) -> Generator[Piece, None, None]:
        """The model's answer; where somebody still speaks and the model can, it listens meanwhile."""
        *before, question = request.messages
        decoded = [{**message, "content": self._decoded(running, message["content"])} for message in before]
        question = {**question, "content": self._opened(running.ticket, question["content"])}
        if (utterance := self._spoken(question["content"])) is not None:
            yield from self._listen(running, request, conversation, [*decoded, question], utterance)
        else:
            asked = {**question, "content": self._decoded(running, question["content"])}
            yield from self._pieces(running, request, conversation, [*decoded, asked])

    def _opened(self, ticket: Ticket, content: Any) -> Any:
        """Content with what a microphone hears for it in the microphone's place; that can be had once."""
        if isinstance(content, str):
            return content
        return [
            {**item, "audio": self._media.spoken(item["audio"], ticket) or item["audio"]}
            if item["type"] == "audio"
            else item
            for item in content
        ]

    def _spoken(self, content: Any) -> Utterance | None:
        """What is being said, where a question is that and perhaps words after it; None: wait for its end."""
        if isinstance(content, str) or [item["type"] for item in content] not in (["audio"], ["audio", "text"]):
            return None
        said = content[0]["audio"]
        listens = isinstance(said, Utterance) and not said.over.is_set() and hasattr(self._model, "listen")
        return said if listens else None

    def _listen(
        self,
        running: Running,
        request: Request,
        conversation: Conversation,
        messages: list[dict[str, Any]],
        utterance: Utterance,
    ) -> Generator[Piece, None, None]:
        """The answer to what is being said; where it does not fit after the conversation, `_pieces` asks again."""
        *before, question = compose(conversation, messages, tools=bool(request.options.get("tools")))
        words = "".join(item["text"] for item in question["content"] if item["type"] == "text")
        model: Any = self._model  # not every one listens
        said: list[NDArray[np.float32]] = []
        speech = utterance.pieces(running.stop)
        try:
            with model.listen(words, messages=before, cancel=running.stop, **request.options) as listening:
                for samples in speech:
                    said.append(samples)
                    listening.feed(samples)
                check_said(utterance)
                yield from listening.finish()
        except EdgeRuntimeError as error:
            if error.code != "too_large" or not conversation.turns:
                raise
            said += speech
            check_said(utterance)
            sound = {"type": "audio", "audio": np.concatenate(said)}
            asked = {**question, "content": [sound, *question["content"][1:]]}
            yield from self._pieces(running, request, conversation, [*messages[:-1], asked])

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
        utterance = self._media.spoken(request.audio, running.ticket)
        if utterance is not None and hasattr(self._model, "listen") and not utterance.over.is_set():
            tell = self._teller(running.ticket) if request.stream else None
            return heard(self._model, utterance, running, request.options.get("language", "English"), tell)
        samples = self._media.sound(utterance or request.audio, running.ticket, running.stop)
        options = dict(request.options)
        if request.stream:
            options["on_text"] = self._teller(running.ticket)
        transcript = self._model.transcribe(samples, cancel=running.stop, **options)
        body = {"id": running.ticket.id, "text": transcript.text, "segments": transcript.segments}
        return body | {"finish_reason": "stop", "duration": round(len(samples) / media.SAMPLE_RATE, 2)}

    @staticmethod
    def _teller(ticket: Ticket) -> Callable[..., None]:
        """Sends pieces of text, numbered, and what goes with them."""
        numbers = itertools.count()
        return lambda text, **more: ticket.books.delta(
            ticket, {"id": ticket.id, "seq": next(numbers), "text": text, **more}
        )

    def _decoded(self, running: Running, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        """Content with the bytes of images and recordings decoded, within the limits; what a tool said is text."""
        if isinstance(content, str):
            return content
        decoded = []
        for item in content:
            if item["type"] == "image":
                decoded.append({"type": "image", "image": self._media.picture(item["image"])})
            elif item["type"] == "audio":
                samples = self._media.sound(item["audio"], running.ticket, running.stop)
                decoded.append({"type": "audio", "audio": samples})
            else:
                decoded.append(item)
        return decoded


def _apart(request: Request, piece: Piece) -> dict[str, Any]:
    """What a piece has beside its text, for those who asked for it."""
    parts = {"thought": ("think", piece.thought), "logprobs": ("logprobs", piece.scored)}
    return {name: value for name, (option, value) in parts.items() if request.options.get(option) and value}
