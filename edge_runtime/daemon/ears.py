"""The box's microphones and its voice: what is said is written down, answered and, where there is a voice, spoken.

A turn is one utterance and what it leads to. It is a thread of its own that asks the daemon's one queue twice: for the
transcript, and for the answer to it. Whoever speaks next ends it.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
import uuid
from typing import TYPE_CHECKING, Any

from edge_runtime.daemon.talk import Talk, Turn
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.ear import Ear, EarOptions
from edge_runtime.perception.echo import Gate, echo_cancellation
from edge_runtime.perception.endpointing import EndpointOptions
from edge_runtime.perception.source import close_all
from edge_runtime.perception.speaker import Speaker
from edge_runtime.perception.utterance import Utterance
from edge_runtime.perception.voice import find_voice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_runtime.daemon.admission import Running, Ticket
    from edge_runtime.daemon.local import LocalRequests
    from edge_runtime.daemon.requests import Live
    from edge_runtime.daemon.talk import News
    from edge_runtime.perception.source import Status
    from edge_runtime.settings import Settings
    from edge_runtime.settings_senses import MicrophoneSettings, SpeechSettings

log = logging.getLogger(__name__)

# Closing takes no longer: the daemon has five seconds for its end.
CLOSE_S = 0.7
# Recordings that MQTT asked for and no request has fetched yet.
MOST_PUSHED = 64
# Devices that are what the sound server makes of them, so that its echo canceller is in between.
SERVER_DEVICES = frozenset({None, "", "default", "pulse", "pipewire"})
MOST_SPOKEN = 4000
"""Characters of a text that is read aloud at request."""


class Ears:
    """All microphones, and the loudspeaker."""

    def __init__(self, settings: Settings, local: LocalRequests, news: News, *, streams: bool) -> None:
        """Opens nothing yet.

        Args:
            settings: Of microphones and voice.
            local: Where is asked.
            news: Hears what was said and answered.
            streams: Whether the model hears while the person still speaks.

        Raises:
            EdgeRuntimeError: The voice that the settings name is not there.
        """
        self._settings, self._local, self._news, self._streams = settings, local, news, streams
        self._gate = Gate()
        voice = find(settings.speech) if settings.microphones else None
        self.speaker = Speaker(voice, settings.speech.device, gate=self._gate) if voice is not None else None
        self._microphones: dict[str, Microphone] = {}
        self._pushed: collections.OrderedDict[int, Utterance | EdgeRuntimeError] = collections.OrderedDict()
        self._lock = threading.Lock()

    def open(self, heard: Callable[[], None] = lambda: None) -> None:
        """Listens from now on. `heard` is called when somebody begins to speak.

        Raises:
            EdgeRuntimeError: A wake word that is not there.
        """
        for settings in self._settings.microphones:
            talk = Talk(settings, self._local, self._news, early=self._streams)
            microphone = Microphone(settings, talk, self._gate, self.speaker, self._news, heard)
            self._microphones[settings.name] = microphone

    def close(self) -> None:
        """Listens no more, and is silent."""
        close_all([microphone.close for microphone in self._microphones.values()], CLOSE_S)
        if self.speaker is not None:
            self.speaker.close()

    def push(self, ticket: Ticket, live: Live) -> None:
        """A request has come that wants to hear somebody: a microphone listens from now on. Never raises or waits."""
        recording: Utterance | EdgeRuntimeError
        try:
            recording = self._microphones[live.source].push(live.seconds)
        except EdgeRuntimeError as error:
            recording = error
        with self._lock:
            self._pushed[ticket.seq] = recording
            while len(self._pushed) > MOST_PUSHED:
                forgotten = self._pushed.popitem(last=False)[1]
                if isinstance(forgotten, Utterance):
                    forgotten.cancel()

    def pushed(self, ticket: Ticket) -> Utterance:
        """What a microphone hears for a request.

        Raises:
            EdgeRuntimeError: The microphone was away, or the daemon has been started again since.
        """
        with self._lock:
            recording = self._pushed.pop(ticket.seq, None)
        if isinstance(recording, Utterance):
            return recording
        raise recording or EdgeRuntimeError("what was said is lost: the daemon was restarted", "internal")

    @contextlib.contextmanager
    def aloud(self, name: str | None, running: Running) -> Iterator[Callable[[str], None]]:
        """While a request runs whose answer somebody at the microphone `name` waits for: takes the answer's text."""
        microphone = self._microphones.get(name or "")
        if microphone is None:
            yield lambda _: None
            return
        with microphone.answering(running) as say:
            yield say

    def say(self, payload: bytes) -> None:
        """Reads a text aloud that came over MQTT."""
        text = payload.decode("utf-8", "replace")[:MOST_SPOKEN]
        if self.speaker is None:
            log.warning("nothing can be said: %s", "no voice, or no microphones are set")
        elif text.strip():
            self.speaker.say(text)
        else:
            self.speaker.cancel()

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """How each microphone is, for status pages and metrics."""
        return {name: microphone.ear.snapshot() for name, microphone in self._microphones.items()}


class Microphone:
    """One microphone: who listens to it, and who is being answered at it."""

    def __init__(
        self,
        settings: MicrophoneSettings,
        talk: Talk,
        gate: Gate,
        speaker: Speaker | None,
        news: News,
        heard: Callable[[], None],
    ) -> None:
        """Listens from now on."""
        self._settings, self._talk, self._news, self._heard = settings, talk, news, heard
        self._speaker = speaker if settings.speak else None
        self._gate = _Duplex(gate, free=settings.echo_cancelled)
        self._lock = threading.Lock()
        self._turn: Turn | None = None
        self._answer: _Answer | None = None
        self.ear = Ear(settings.name, _options(settings), self._begins, gate=self._gate, on_change=self._changed)

    def push(self, seconds: float | None) -> Utterance:
        """Listens now, to somebody who asks for it; see `Ear.push_to_talk`.

        Raises:
            EdgeRuntimeError: The microphone is away.
        """
        utterance = self.ear.push_to_talk(seconds=seconds, until_pause=seconds is None)
        self.interrupt()
        return utterance

    def interrupt(self) -> None:
        """Ends what is being answered or said at this microphone. From any thread; never waits."""
        with self._lock:
            turn, self._turn = self._turn, None
            answer, self._answer = self._answer, None
        if answer is not None:
            answer.cancel()
        if turn is not None:
            turn.cancel()

    @contextlib.contextmanager
    def answering(self, running: Running) -> Iterator[Callable[[str], None]]:
        """While an answer is made; it is spoken, perhaps for longer than that."""
        speech = self._speaker.begin() if self._speaker is not None else None
        answer = _Answer(running, speech)
        with self._lock:
            self._answer = answer
        self.ear.answering(True)
        try:
            yield answer.say
            if speech is not None:
                speech.finish()
        except BaseException:
            answer.silence()
            raise
        finally:
            if running.stop.is_set():
                answer.silence()
            threading.Thread(target=self._hear_out, args=(answer,), name="hear out", daemon=True).start()

    def close(self) -> None:
        """Ends it."""
        self.interrupt()
        self.ear.close()
        self._news.retain(f"microphone/{self._settings.name}/status", "offline")

    def _begins(self, utterance: Utterance) -> None:
        """Somebody speaks. In the ear's thread."""
        self.interrupt()
        turn = Turn(self._talk, utterance, f"{self._settings.name}/{uuid.uuid4().hex}")
        with self._lock:
            self._turn = turn
        turn.start()
        self._heard()

    def _hear_out(self, answer: _Answer) -> None:
        """Waits until the answer was spoken; after that, speech is no barge-in any more."""
        if answer.speech is not None:
            answer.speech.over.wait()
        with self._lock:
            if self._answer is not None and self._answer is not answer:
                return
            self._answer = None
        self.ear.answering(False)

    def _changed(self, status: Status) -> None:
        self._news.retain(f"microphone/{self._settings.name}/status", "online" if status.state == "open" else "offline")
        if status.state == "open" and self._settings.echo_cancelled is None:
            threading.Thread(target=self._ask_server, name="echo", daemon=True).start()

    def _ask_server(self) -> None:
        """The sound server may have been restarted, with an echo canceller or without."""
        self._gate.free = self._settings.device in SERVER_DEVICES and echo_cancellation().active


class _Answer:
    """What is being answered at a microphone: the request that runs, and the speech."""

    def __init__(self, running: Running, speech: Any) -> None:
        self._running, self.speech = running, speech

    def say(self, text: str) -> None:
        if self.speech is not None:
            self.speech.push(text)

    def silence(self) -> None:
        if self.speech is not None:
            self.speech.cancel()

    def cancel(self) -> None:
        self._running.halt("cancelled")
        self.silence()


class _Duplex:
    """The gate as one microphone sees it: always open where our own voice is taken out of what it hears."""

    def __init__(self, gate: Gate, *, free: bool | None) -> None:
        self._gate, self.free = gate, bool(free)

    @property
    def closed(self) -> bool:
        return not self.free and self._gate.closed


def find(settings: SpeechSettings) -> Any:
    """The box's voice; None: it has none.

    Raises:
        EdgeRuntimeError: The one that the settings name is not there.
    """
    if settings.engine == "off":
        return None
    voice = settings.voice
    if settings.engine == "piper" and not (voice or "").endswith(".onnx"):
        raise EdgeRuntimeError("speech.voice: the engine piper wants the path of a voice (.onnx)")
    if settings.engine == "espeak-ng" and (voice or "").endswith(".onnx"):
        raise EdgeRuntimeError(f"speech.voice: {voice} is a voice of piper, not of espeak-ng")
    try:
        return find_voice(voice, settings.words_per_minute)
    except EdgeRuntimeError as error:
        if settings.engine != "auto" or voice is not None:
            raise
        log.info("answers are not spoken: %s", error)
        return None


def _options(settings: MicrophoneSettings) -> EarOptions:
    return EarOptions(
        device=settings.device,
        mode=settings.mode,  # type: ignore[arg-type]  # the settings allow no other
        wake_words=settings.wake_words,
        wake_threshold=settings.wake_threshold,
        barge_in=settings.barge_in,
        endpoint=EndpointOptions(
            threshold=settings.threshold,
            release=max(0.02, settings.threshold - 0.15),
            pause_s=settings.pause_s,
            min_speech_s=settings.min_speech_s,
            max_s=settings.max_s,
            patience_s=settings.patience_s,
        ),
    )
