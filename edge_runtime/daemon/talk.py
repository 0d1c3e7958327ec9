"""One utterance and what it leads to: a transcript, and an answer to it."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Any, Protocol

from edge_runtime.daemon.admission import VOICE
from edge_runtime.daemon.requests import Request
from edge_runtime.daemon.worker import STOPPED, error_body
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.daemon.local import LocalHandle, LocalRequests
    from edge_runtime.perception.utterance import Utterance
    from edge_runtime.settings_senses import MicrophoneSettings

log = logging.getLogger(__name__)


class News(Protocol):
    """Who tells the world what happens; topics are below those of this box. From any thread; never waits."""

    def tell(self, topic: str, body: dict[str, Any]) -> None:
        """Something happened; of no use later than a minute from now."""

    def hint(self, topic: str, body: dict[str, Any]) -> None:
        """A piece of something whose whole follows."""

    def retain(self, topic: str, payload: str) -> None:
        """What a topic holds from now on."""


class Talk:
    """How one microphone's utterances are dealt with."""

    def __init__(self, settings: MicrophoneSettings, local: LocalRequests, news: News, *, early: bool) -> None:
        """Args: the microphone; where is asked; who is told; whether the model listens while the person speaks."""
        self.settings, self.local, self.news, self.early = settings, local, news, early

    def transcription(self, turn_id: str, sound: Any) -> Request:
        """The request for a transcript of samples, or of an utterance that goes on."""
        return Request("transcribe", turn_id, audio=sound, options={"language": self.settings.language})

    def question(self, turn_id: str, text: str) -> Request:
        """The request for an answer."""
        settings = self.settings
        system = [{"role": "system", "content": [{"type": "text", "text": settings.system}]}] if settings.system else []
        return Request(
            "ask",
            turn_id,
            [*system, {"role": "user", "content": [{"type": "text", "text": text}]}],
            options={"max_tokens": settings.max_tokens} if settings.max_tokens else {},
            session="talk",
            stream=True,
            aloud=settings.name,
        )


class Turn:
    """One utterance on its way. `cancel` ends it at any point; its errors are answers like others."""

    def __init__(self, talk: Talk, utterance: Utterance, turn_id: str) -> None:
        """Args: how it is dealt with; what is said; the id of transcript and answer."""
        self._talk, self._utterance, self._id = talk, utterance, turn_id
        self._lock = threading.Lock()
        self._cancelled = False
        self._handle: LocalHandle | None = None
        self._pieces = 0

    def start(self) -> None:
        """Goes its way, in a thread of its own."""
        threading.Thread(target=self._run, name=f"turn {self._id[:24]}", daemon=True).start()

    def cancel(self) -> None:
        """Nobody wants it any more. From any thread; never waits."""
        with self._lock:
            self._cancelled = True
            handle = self._handle
        self._utterance.cancel()
        if handle is not None:
            handle.cancel()

    def _run(self) -> None:
        try:
            text = self._transcribe()
            if text and self._talk.settings.action == "ask":
                body = self._ask(self._talk.question(self._id, text), self._hint)
                self._talk.news.tell("answer", {**body, "microphone": self._utterance.microphone})
        except Exception:
            log.exception("%s: an utterance came to nothing", self._id)

    def _transcribe(self) -> str:
        """What was said, told to the world; "" where nothing was, or nobody wants it."""
        utterance = self._utterance
        sound: Any = utterance
        if not self._talk.early:
            sound = utterance.sound()
            if utterance.aborted:
                return ""
        body = self._ask(self._talk.transcription(self._id, sound))
        if utterance.aborted or self._cancelled or not (body.get("text") or "error" in body):
            return ""
        about = {"microphone": utterance.microphone, "trigger": utterance.trigger, "began": round(utterance.began, 2)}
        about |= {"wake_word": utterance.wake_word} if utterance.wake_word else {}
        wanted = ("id", "text", "duration", "timing", "error")
        self._talk.news.tell("event/transcript", {name: body[name] for name in wanted if name in body} | about)
        return str(body.get("text", ""))

    def _hint(self, text: str) -> None:
        self._talk.news.hint("answer/delta", {"id": self._id, "seq": self._pieces, "text": text})
        self._pieces += 1

    def _ask(self, request: Request, on_delta: Callable[[str], None] | None = None) -> dict[str, Any]:
        """The final answer to a request; that of an error, too."""
        finals: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        if self._is_cancelled():
            return error_body(self._id, STOPPED["cancelled"], "cancelled")
        try:
            handle = self._talk.local.submit(
                request, client=f"microphone {self._utterance.microphone}", rank=VOICE, on_delta=on_delta,
                on_final=finals.put,
            )  # fmt: skip
        except EdgeRuntimeError as error:
            more = {"retry_after_s": error.retry_after_s} if hasattr(error, "retry_after_s") else {}
            return error_body(self._id, str(error), error.code, **more)
        with self._lock:
            self._handle = handle
        if self._is_cancelled():
            handle.cancel()
        return finals.get()

    def _is_cancelled(self) -> bool:
        with self._lock:
            return self._cancelled
