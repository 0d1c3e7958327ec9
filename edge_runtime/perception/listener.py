"""From blocks of sound to utterances: what begins one.

No threads and no devices: the same blocks always give the same utterances.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, Protocol

from edge_runtime.perception.endpointing import ONSET_WINDOW, Endpointer, EndpointOptions, blocks
from edge_runtime.perception.recording import PointedRecording, Recording
from edge_runtime.perception.utterance import Utterance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Mode = Literal["push-to-talk", "voice", "wake-word"]
"""What begins an utterance: somebody who asks for it, speech, or a wake word. Asking for it works in every mode."""

WAKE_PRE_ROLL_S = 0.5
"""Sound from before a wake word was recognised that belongs to the utterance: people don't wait for us."""


class Detector(Protocol):
    """Says how likely it is that a block is speech; see `vad.VoiceActivity`."""

    def __call__(self, block: NDArray[np.float32], /) -> float:
        """The probability for the next block, float32 `[512]`."""
        ...

    def reset(self) -> None:
        """The next block does not follow the last one."""
        ...


class WakeDetector(Protocol):
    """Says which wake word has just been said; see `wake.WakeWords`."""

    def __call__(self, block: NDArray[np.float32], /) -> str | None:
        """The wake word that the next block, float32 `[512]`, completes."""
        ...

    def reset(self) -> None:
        """The next block does not follow the last one."""
        ...


class Gate(Protocol):
    """Says whether our own voice is to be heard; see `echo.Gate`."""

    @property
    def closed(self) -> bool:
        """Whether what is heard now may be our own voice."""
        ...


class Listener:
    """The state machine of one microphone.

    Attributes:
        answering: Set it while an answer is being made or spoken: speech then begins an utterance in every mode, with
            the trigger `barge-in`.
        barge_in: Whether it does.
    """

    def __init__(
        self,
        microphone: str,
        detector: Detector,
        *,
        mode: Mode = "voice",
        options: EndpointOptions | None = None,
        wake: WakeDetector | None = None,
        gate: Gate | None = None,
        barge_in: bool = True,
    ) -> None:
        """Listens.

        Args:
            microphone: Its name.
            detector: Tells speech.
            mode: What begins an utterance.
            options: How it begins and ends.
            wake: Needed in the mode `wake-word`; serves in every mode.
            gate: While it is closed nothing but a wake word or a push is heard; None where the sound server takes our
                own voice out of what the microphone hears.
            barge_in: Whether speech during an answer begins an utterance.
        """
        self.answering = False
        self.barge_in = barge_in
        self._name, self._detect, self._mode, self._wake, self._gate = microphone, detector, mode, wake, gate
        self._options = options or EndpointOptions()
        self._ends = Endpointer(self._options)
        self._recording: Recording | None = None
        self._pre_roll = blocks(self._options.pre_roll_s)
        self._before: deque[NDArray[np.float32]] = deque(
            maxlen=max(self._pre_roll + ONSET_WINDOW, blocks(WAKE_PRE_ROLL_S))
        )

    def feed(self, block: NDArray[np.float32]) -> Utterance | None:
        """Takes the next block, float32 `[512]`.

        Returns:
            The utterance that it begins, if it does.
        """
        if self._recording is not None and self._recording.over:
            self._finish()
        probability = self._detect(block)
        deaf = self._gate is not None and self._gate.closed
        word = self._wake(block) if self._wake is not None else None
        if word is not None and not (self._recording and self._recording.utterance.trigger == "push"):
            return self._by_word(word, block, deaf=deaf)
        if self._recording is not None:
            if deaf:
                self._recording.own_voice()
            if not deaf or self._recording.utterance.trigger == "push":
                self._recording.feed(block, probability)
            return None
        if deaf:
            self._forget()
            return None
        self._before.append(block)
        armed = self._mode == "voice" or (self.answering and self.barge_in)
        return self._by_voice() if armed and self._ends.feed(probability) == "begin" else None

    def push(self, utterance: Utterance, *, seconds: float | None = None, until_pause: bool = False) -> None:
        """Somebody asks to be heard: `utterance` begins now, in place of any other.

        Args:
            utterance: With the trigger `push`.
            seconds: It ends after so many. None: it has a pre-roll and goes on until `release`, `max_s` at most.
            until_pause: It ends at a pause, too, and is aborted when nobody speaks.
        """
        self._replace("somebody pushed to talk")
        if until_pause:
            self._recording = PointedRecording(utterance, self._options, self._ends, waits=True, limit_s=seconds)
        else:
            self._recording = Recording(utterance, self._options, seconds)
        if seconds is None:
            self._recording.begin(list(self._before)[-self._pre_roll :])
        self._before.clear()

    def release(self) -> None:
        """The button is let go: what was pushed to talk is complete."""
        if self._recording is not None and self._recording.utterance.trigger == "push":
            self._recording.release()

    def broke_off(self, why: str) -> None:
        """The sound broke off, or nobody listens any more: what was going on is worthless."""
        self._replace(why)
        self._forget()
        self._detect.reset()
        if self._wake is not None:
            self._wake.reset()

    def _by_voice(self) -> Utterance:
        utterance = Utterance(self._name, "barge-in" if self.answering else "voice")
        self._recording = PointedRecording(utterance, self._options, self._ends)
        self._recording.begin(list(self._before)[-(self._pre_roll + ONSET_WINDOW) :])
        self._before.clear()
        return utterance

    def _by_word(self, word: str, block: NDArray[np.float32], *, deaf: bool) -> Utterance:
        self._replace("a wake word was said")
        utterance = Utterance(self._name, "wake", word)
        self._recording = PointedRecording(utterance, self._options, self._ends, waits=True)
        if not deaf:
            self._before.append(block)
            self._recording.begin(list(self._before)[-blocks(WAKE_PRE_ROLL_S) :])
        self._before.clear()
        return utterance

    def _replace(self, why: str) -> None:
        """Makes room for another utterance."""
        if self._recording is not None:
            self._recording.utterance.abort(why)
            self._finish()
        self._ends.reset()

    def _finish(self) -> None:
        """An utterance is over: listens for the next one, to which the silence after it may belong."""
        if self._recording is not None:
            self._before.extend(self._recording.rest())
        self._recording = None
        self._ends.reset()

    def _forget(self) -> None:
        self._ends.reset()
        self._before.clear()
