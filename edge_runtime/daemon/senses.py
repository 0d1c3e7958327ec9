"""What a request may want of the box's microphones, cameras and voice, and what these tell the world."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime import media
from edge_runtime.daemon.requests import Live
from edge_runtime.engine.speech import Teller, transcribe_prompt
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.utterance import Utterance

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from PIL.Image import Image

    from edge_runtime.daemon.admission import Running, Ticket
    from edge_runtime.daemon.ears import Ears
    from edge_runtime.daemon.eyes import Eyes
    from edge_runtime.daemon.local import LocalRequests
    from edge_runtime.daemon.mqtt import Link
    from edge_runtime.daemon.requests import Parser, Request
    from edge_runtime.settings import LimitsSettings

NOTHING = "nothing was heard"


class LinkNews:
    """Tells MQTT."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def tell(self, topic: str, body: dict[str, Any]) -> None:
        """See `talk.News`."""
        self._link.publish_news(self._link.topics(topic), json.dumps(body, ensure_ascii=False))

    def hint(self, topic: str, body: dict[str, Any]) -> None:
        """See `talk.News`."""
        self._link.publish_delta(self._link.topics(topic), json.dumps(body, ensure_ascii=False))

    def retain(self, topic: str, payload: str) -> None:
        """See `talk.News`."""
        self._link.retain(self._link.topics(topic), payload)


class Senses:
    """Ears, eyes and voice of one daemon."""

    def __init__(self, ears: Ears, eyes: Eyes) -> None:
        self.ears, self.eyes = ears, eyes

    @classmethod
    def of(cls, parser: Parser, local: LocalRequests, link: Link, *, streams: bool) -> Senses | None:
        """Those that the settings ask for, not open yet; None: none, and nothing of them is imported.

        Raises:
            EdgeRuntimeError: The voice that the settings name is not there.
        """
        settings = parser.settings
        if not settings.microphones and not settings.cameras:
            return None
        from edge_runtime.daemon.ears import Ears  # noqa: PLC0415 - not needed by all
        from edge_runtime.daemon.eyes import Eyes  # noqa: PLC0415

        news = LinkNews(link)
        senses = cls(Ears(settings, local, news, streams=streams), Eyes(parser, local, news))
        if senses.ears.speaker is not None:
            link.hear(link.topics("say"), senses.ears.say)
        return senses

    def open(self) -> None:
        """Listens and looks from now on.

        Raises:
            EdgeRuntimeError: An extra or a wake word is missing.
        """
        self.eyes.open()
        self.ears.open(self.eyes.make_room)

    def close(self) -> None:
        """Listens and looks no more."""
        self.ears.close()
        self.eyes.close()

    def accepted(self, ticket: Ticket, request: Request) -> None:
        """A request was taken in: if it wants to hear somebody, a microphone listens from now on."""
        if (live := request.listens) is not None:
            self.ears.push(ticket, live)
            self.eyes.make_room()

    def aloud(self, microphone: str | None, running: Running) -> AbstractContextManager[Callable[[str], None]]:
        """See `Ears.aloud`."""
        return self.ears.aloud(microphone, running)

    def snapshot(self) -> dict[str, Any]:
        """How all of them are."""
        return {"microphones": self.ears.snapshot(), "cameras": self.eyes.snapshot()}


class Media:
    """Makes pictures and samples of what a request has, within the limits."""

    def __init__(self, senses: Senses | None, limits: LimitsSettings) -> None:
        """Args: where `Live` media come from; what is taken."""
        self._senses, self.limits = senses, limits

    def picture(self, source: Any) -> Image:
        """A picture.

        Raises:
            EdgeRuntimeError: It is damaged or too large; the camera is away.
        """
        if isinstance(source, Live):
            return self._there().eyes.picture(source.source)
        return media.load_image(source, self.limits.image_pixels)

    def sound(self, source: Any, ticket: Ticket, stop: threading.Event) -> NDArray[np.float32]:
        """Samples of a recording, or of somebody who still speaks: then it waits until the end, or until `stop`.

        Raises:
            EdgeRuntimeError: It is damaged or too long; nobody spoke; the microphone is away.
        """
        source = self.spoken(source, ticket) or source
        if isinstance(source, Utterance):
            return collected(source, stop)
        return media.load_audio(source, self.limits.audio_s)

    def spoken(self, source: Any, ticket: Ticket) -> Utterance | None:
        """Somebody who speaks, or has just spoken; None where the source is a recording.

        Raises:
            EdgeRuntimeError: The microphone is away.
        """
        if isinstance(source, Live):
            return self._there().ears.pushed(ticket)
        return source if isinstance(source, Utterance) else None

    def _there(self) -> Senses:
        if self._senses is None:  # a stored request of a daemon that had them
            raise EdgeRuntimeError("this daemon has no cameras and no microphones", "internal")
        return self._senses


def heard(
    model: Any, utterance: Utterance, running: Running, language: str, tell: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """The answer to the request for a transcript of somebody who still speaks: the model listens meanwhile.

    Args:
        model: Listens.
        utterance: What is being said.
        running: The request.
        language: English name of what is spoken.
        tell: Is told the text piece by piece while it is written.

    Raises:
        EdgeRuntimeError: The utterance came to nothing, or the request was stopped.
    """
    with model.listen(transcribe_prompt(language), temperature=0, cancel=running.stop) as listening:
        for samples in utterance.pieces(running.stop):
            listening.feed(samples)
        check_said(utterance)
        told, text, timing = Teller(tell, ""), "", None
        for piece in listening.finish():
            text += piece.text
            timing = piece.timing
            told(text)
    text = text.strip()
    segments = [{"start": 0.0, "end": round(utterance.seconds, 2), "text": text}] if text else []
    about = {"finish_reason": "stop", "duration": round(utterance.seconds, 2), "timing": timing}
    return {"id": running.ticket.id, "text": text, "segments": segments, **about}


def collected(utterance: Utterance, stop: threading.Event) -> NDArray[np.float32]:
    """All of an utterance, float32 `[n]`, once it is over.

    Raises:
        EdgeRuntimeError: It came to nothing, or `stop` was set.
    """
    samples = list(utterance.pieces(stop))
    check_said(utterance)
    return np.concatenate(samples)


def check_said(utterance: Utterance) -> None:
    """Refuses an utterance that is over and came to nothing.

    Raises:
        EdgeRuntimeError: `cancelled`: nobody spoke, the microphone went away, or nobody wants it any more.
    """
    if utterance.aborted or not utterance.samples:
        raise EdgeRuntimeError(f"microphone {utterance.microphone}: {utterance.aborted or NOTHING}", "cancelled")
