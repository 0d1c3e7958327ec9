"""Two engines as one: a small model on this box answers, a larger one, here or elsewhere, what is too hard for it."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edge_runtime.engine.protocol import Info
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from edge_runtime.engine.protocol import Engine, Piece, Request

log = logging.getLogger(__name__)

RULES = ("always", "modality", "length", "request")
AWAY = {"internal", "busy"}
"""Codes of errors that say something of the larger engine, and nothing of the request."""
RETRY_S = 10.0
CLOSE_S = 10.0
_BYTES_A_TOKEN = 4


@dataclass(frozen=True)
class Rules:
    """Which requests go to the larger engine; one that asks for it always does.

    Attributes:
        when: Any of `RULES`: all of them; those with media of `modalities`; those longer than `tokens`; none else.
        modalities: Any of image, audio, video.
        tokens: Length of a prompt, at four bytes of text for a token.
    """

    when: tuple[str, ...] = ("request",)
    modalities: tuple[str, ...] = ("image", "audio", "video")
    tokens: int = 1024

    def __post_init__(self) -> None:
        """Checks the words.

        Raises:
            EdgeRuntimeError: One is not known.
        """
        for word in self.when:
            if word not in RULES:
                raise EdgeRuntimeError(f"route: {word!r} is no rule; there are {', '.join(RULES)}")

    def wants_larger(self, request: Request) -> bool:
        """Whether a request is for the larger engine."""
        kinds, length = _contents(request)
        return (
            request.large
            or "always" in self.when
            or ("modality" in self.when and not kinds.isdisjoint(self.modalities))
            or ("length" in self.when and length > self.tokens * _BYTES_A_TOKEN)
        )


class Route:
    """An engine of two. The larger one may be away: then the small one answers, and the answer's `note` says so."""

    def __init__(self, small: Engine, open_larger: Callable[[], Engine], rules: Rules) -> None:
        """Takes the small engine, and how to get the larger one, which is done in the background.

        Args:
            small: On this box.
            open_larger: Makes the larger engine; raises EdgeRuntimeError where it is away. Called again later then.
            rules: What goes where.
        """
        self._small, self._open, self._rules = small, open_larger, rules
        self._larger: Engine | None = None
        self._why = "it is not ready yet"
        self._closing = threading.Event()
        self._tried = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep_open, name="larger model", daemon=True)
        self._thread.start()

    @property
    def info(self) -> Info:
        """The small model's name and context, and what either takes."""
        small = self._small.info
        larger = self._larger.info if self._larger is not None else small
        kinds = [*small["modalities"], *(kind for kind in larger["modalities"] if kind not in small["modalities"])]
        return Info(name=small["name"], modalities=kinds, context=max(small["context"], larger["context"]))

    @property
    def max_audio_seconds(self) -> float:
        """The longest sound that either takes."""
        engines = [self._small, *([self._larger] if self._larger is not None else [])]
        return max(engine.max_audio_seconds for engine in engines)

    @property
    def memory(self) -> Any:
        """What the small engine takes of this box."""
        return getattr(self._small, "memory", None)

    def wait(self, timeout_s: float) -> bool:
        """Waits for the first attempt to reach the larger engine; whether it is there."""
        self._tried.wait(timeout_s)
        return self._larger is not None

    def run(self, request: Request) -> Generator[Piece, None, None]:
        """See `Engine.run`."""
        if not self._rules.wants_larger(request):
            return self._small.run(request)
        larger = self._larger
        if larger is None:
            return self._instead(request, self._why)
        try:
            pieces = larger.run(request)
        except EdgeRuntimeError as error:
            if error.code not in AWAY:
                raise
            return self._instead(request, str(error))
        return self._watched(request, pieces, larger.info["name"])

    def close(self) -> None:
        """Closes both. A larger model that still loads may take minutes: it is closed when it has loaded."""
        self._closing.set()
        self._thread.join(CLOSE_S)
        with self._lock:
            if self._larger is not None:
                self._larger.close()
        self._small.close()

    def _watched(
        self, request: Request, pieces: Generator[Piece, None, None], name: str
    ) -> Generator[Piece, None, None]:
        """The larger engine's answer; the small one's, if that fails before its first word."""
        said = False
        try:
            for piece in pieces:
                said = said or bool(piece.text)
                yield piece if piece.finish_reason is None else replace(piece, note=f"answered by {name}")
        except EdgeRuntimeError as error:
            if said or error.code not in AWAY:
                raise
            why = str(error)
        else:
            return
        yield from self._instead(request, why)

    def _instead(self, request: Request, why: str) -> Generator[Piece, None, None]:
        log.warning("the larger model is away (%s): %s answers", why, self._small.info["name"])
        note = f"answered by {self._small.info['name']}: the larger model is away ({why})"
        for piece in self._small.run(request):
            yield piece if piece.finish_reason is None else replace(piece, note=note)

    def _keep_open(self) -> None:
        while not self._closing.is_set():
            try:
                larger = self._open()
            except EdgeRuntimeError as error:
                self._why = str(error)
                log.log(logging.DEBUG if self._tried.is_set() else logging.WARNING, "the larger model: %s", error)
            else:
                with self._lock:
                    self._larger = larger
                if self._closing.is_set():
                    larger.close()
                return self._tried.set()
            self._tried.set()
            self._closing.wait(RETRY_S)
        return None


def _contents(request: Request) -> tuple[set[str], int]:
    """Kinds of media in a request, and bytes of its text."""
    kinds: set[str] = set()
    length = len((request.raw or "").encode())
    for message in request.messages:
        content = message.get("content")
        for item in [{"type": "text", "text": content}] if isinstance(content, str) else content or ():
            if not isinstance(item, dict):
                continue
            if item.get("type") == "text":
                length += len(str(item.get("text", "")).encode())
            else:
                kinds.add(str(item.get("type")))
    return kinds, length
