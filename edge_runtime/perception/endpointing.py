"""Where speech begins and where it ends, from the probabilities of a voice activity detector.

Time is counted in blocks of sound, never by a clock: a busy machine hears no differently. Two thresholds, so that a
probability that wavers is not a new beginning; several blocks to begin, so that a click is not one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from edge_runtime.perception.pcm import BLOCK_S


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """What may be tuned; the defaults are those of `docs` and tests."""

    threshold: float = 0.5
    """Probability from which a block is speech; higher where a television talks, lower for a quiet speaker."""
    release: float = 0.35
    """Probability under which a block is a pause, once speech has begun."""
    onset_s: float = 0.096
    """Speech within 160 ms that makes a beginning."""
    pause_s: float = 0.7
    """A pause this long ends the utterance. Longer for people who think while they talk, shorter for quick commands."""
    min_speech_s: float = 0.25
    """An utterance with less speech than this was a cough or a knock, and is dropped."""
    max_s: float = 29.0
    """Longest utterance: Gemma 4 hears half a minute at a time."""
    pre_roll_s: float = 0.4
    """Sound from before the beginning that belongs to it: soft consonants come before anything is sure."""
    patience_s: float = 5.0
    """After a wake word or a button without speech, how long we wait for it."""


ONSET_WINDOW = 5
"""Blocks among which `onset_s` of speech makes a beginning."""


def blocks(seconds: float) -> int:
    """The number of blocks that last about `seconds`, at least one."""
    return max(1, round(seconds / BLOCK_S))


class Endpointer:
    """Takes one probability a block, says when speech begins and when it has ended.

    Attributes:
        speaking: Between a beginning and its end.
    """

    def __init__(self, options: EndpointOptions) -> None:
        """Listens for a beginning."""
        self._options = options
        self._needed = min(ONSET_WINDOW, blocks(options.onset_s))
        self.reset()

    def reset(self) -> None:
        """Listens for a beginning again."""
        self.speaking = False
        self._speech = self._pause = 0
        self._recent: deque[bool] = deque(maxlen=ONSET_WINDOW)

    @property
    def speech_s(self) -> float:
        """Seconds of speech since the beginning."""
        return self._speech * BLOCK_S

    @property
    def pause_s(self) -> float:
        """Seconds since the last speech."""
        return self._pause * BLOCK_S

    def feed(self, probability: float) -> Literal["begin", "end"] | None:
        """One block more; after "end" it listens for a beginning again when it is `reset`."""
        if not self.speaking:
            self._recent.append(probability >= self._options.threshold)
            if sum(self._recent) < self._needed:
                return None
            self.speaking = True
            self._speech, self._pause = sum(self._recent), 0
            return "begin"
        if probability >= self._options.release:
            self._speech += 1
            self._pause = 0
            return None
        self._pause += 1
        return "end" if self._pause >= blocks(self._options.pause_s) else None
