"""What belongs to an utterance that has begun, and when it is over."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from edge_runtime.media import SAMPLE_RATE
from edge_runtime.perception.endpointing import ONSET_WINDOW, blocks

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.perception.endpointing import Endpointer, EndpointOptions
    from edge_runtime.perception.utterance import Utterance

TAIL_S = 0.2
"""Of the pause at the end, this much is kept."""
WORD_S = 1.0
"""Speech after a wake word was heard that, if a gap follows, may be the rest of the word itself."""
COMMAND_S = 0.5
"""Such speech that may have held a short command as well."""


class Recording:
    """Fills one utterance. `over` when it has ended or was aborted, by us or by who was given it."""

    def __init__(self, utterance: Utterance, options: EndpointOptions, limit_s: float | None = None) -> None:
        """Begins.

        Args:
            utterance: What is filled.
            options: When it is over.
            limit_s: Its longest length in seconds, within `options.max_s`.
        """
        self.utterance = utterance
        self._options = options
        self._limit = int(min(limit_s or options.max_s, options.max_s) * SAMPLE_RATE)

    @property
    def over(self) -> bool:
        """Whether nothing more belongs to it."""
        return self.utterance.over.is_set()

    def begin(self, before: Iterable[NDArray[np.float32]]) -> None:
        """Hands on what was heard before it began."""
        for block in before:
            self.utterance.push(block)

    def feed(self, block: NDArray[np.float32], probability: float) -> None:  # noqa: ARG002 - whoever pushed says when
        """One block more; here everything belongs to it, until the button is let go."""
        self.utterance.push(block)
        if self.utterance.samples >= self._limit:
            self.utterance.end("limit")

    def release(self) -> None:
        """The button is let go."""
        self.utterance.end("stopped")

    def own_voice(self) -> None:
        """A block in which our own voice drowns everything: whoever pushed knows what they do."""

    def rest(self) -> list[NDArray[np.float32]]:
        """What was heard last and not handed on: it may come before the next utterance."""
        return []


class PointedRecording(Recording):
    """Ends at a pause. What is held back is silence: handed on if speech follows, dropped if nothing does."""

    def __init__(
        self,
        utterance: Utterance,
        options: EndpointOptions,
        ends: Endpointer,
        *,
        waits: bool = False,
        limit_s: float | None = None,
    ) -> None:
        """Begins.

        Args:
            utterance: As in `Recording`.
            options: As in `Recording`.
            ends: The end-pointer: already speaking, or just reset when this `waits`.
            waits: Whether speech is still to come (after a wake word or a push), rather than what began it.
            limit_s: As in `Recording`.
        """
        super().__init__(utterance, options, limit_s)
        self._ends, self._waits, self._waited = ends, waits, 0
        self._word_follows = utterance.trigger == "wake"
        self._word_s = 0.0
        self._held: deque[NDArray[np.float32]] = deque()

    def feed(self, block: NDArray[np.float32], probability: float) -> None:
        """One block more: handed on, held back, or the last one."""
        change = self._ends.feed(probability)
        self._held.append(block)
        if change == "end":
            self._pause()
        elif not self._ends.speaking:
            self._wait()
        elif self._word_follows and self._ends.pause_s > TAIL_S:
            self._after_word()
        elif self._ends.pause_s <= TAIL_S:
            self._hand_on()
        if self.utterance.samples + len(block) * len(self._held) >= self._limit:
            self._hand_on()
            self.utterance.end("limit")

    def release(self) -> None:
        """The button is let go."""
        self._hand_on()
        super().release()

    def own_voice(self) -> None:
        """A block in which our own voice drowns everything: what was being said is lost, what is to come is not."""
        if self._ends.speaking:
            self.utterance.abort("our own voice came in between")
        self._held.clear()
        self._word_follows = False  # it was drowned, too

    def rest(self) -> list[NDArray[np.float32]]:
        """What was heard last and not handed on."""
        return list(self._held)

    def _pause(self) -> None:
        if self._ends.speech_s >= self._options.min_speech_s:
            self.utterance.end("pause")
        elif self._waits:
            self._ends.reset()
        else:
            self.utterance.abort("too short for speech")

    def _after_word(self) -> None:
        """The first gap after a wake word, which is heard before it has quite been said: was it the word that ended?"""
        self._word_follows = False
        if self._ends.speech_s <= WORD_S:
            self._word_s = self._ends.speech_s
            self._ends.reset()

    def _wait(self) -> None:
        self._waited += 1
        if self._waited > ONSET_WINDOW:
            self._word_follows = False  # it had ended when it was heard
        while len(self._held) > blocks(self._options.pre_roll_s) + ONSET_WINDOW:
            self._held.popleft()
        if self._waited >= blocks(self._options.patience_s):
            if self._word_s >= COMMAND_S:  # perhaps "stop", said in one breath with the wake word
                self.utterance.end("pause")
            else:
                self.utterance.abort("nobody spoke")

    def _hand_on(self) -> None:
        while self._held:
            self.utterance.push(self._held.popleft())
