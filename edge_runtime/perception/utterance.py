"""What somebody says, handed on while they say it."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge_runtime.media import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Trigger = Literal["voice", "wake", "push", "barge-in"]
STEP_S = 0.05
"""Whoever waits for a piece looks this often whether it shall stop."""
Ending = Literal["pause", "stopped", "limit"]


class Utterance:
    """Sound that grows until it ends or turns out to be nothing.

    One thread iterates over it and gets float32 pieces, mono at 16 kHz, as they come; the long pause at the end is left
    out. When the iteration is over, either `ended` or `aborted` is set.

    Example:
        for samples in utterance:
            stream.push(samples)
        if utterance.ended:
            answer(stream.finish())

    Attributes:
        microphone: Which one heard it.
        trigger: What began it: `voice`, a `wake` word, somebody who pushed to talk, or a `barge-in`, speech during an
            answer.
        wake_word: The wake word, if there was one.
        began: `time.time()` of its beginning, its pre-roll not counted.
        ended: Why it is complete; None before.
        aborted: Why it is to be forgotten; None otherwise.
        samples: How many were handed on.
        over: Set when it has ended or was aborted.
    """

    def __init__(self, microphone: str, trigger: Trigger, wake_word: str | None = None) -> None:
        """An utterance that begins now."""
        self.microphone = microphone
        self.trigger: Trigger = trigger
        self.wake_word = wake_word
        self.began = time.time()
        self.ended: Ending | None = None
        self.aborted: str | None = None
        self.over = threading.Event()
        self._pieces: queue.SimpleQueue[NDArray[np.float32] | None] = queue.SimpleQueue()
        self.samples = 0

    @property
    def seconds(self) -> float:
        """How much sound was handed on."""
        return self.samples / SAMPLE_RATE

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """The pieces, each once; waits for the next one."""
        while (piece := self._pieces.get()) is not None:
            yield piece

    def pieces(self, stop: threading.Event) -> Iterator[NDArray[np.float32]]:
        """The pieces, as by iteration; whoever waits for them may `stop`, which cancels it."""
        while True:
            try:
                piece = self._pieces.get(timeout=STEP_S)
            except queue.Empty:
                if stop.is_set():
                    self.cancel()
                continue
            if piece is None:
                return
            yield piece

    def sound(self) -> NDArray[np.float32]:
        """All of it that nobody has taken yet, when it is over: float32 `[n]`."""
        return np.concatenate([np.zeros(0, np.float32), *self])

    def cancel(self) -> None:
        """Nobody wants the rest: the microphone stops collecting it. From any thread."""
        self.abort("cancelled")

    # What follows is for who listens, in one thread.

    def push(self, piece: NDArray[np.float32]) -> None:
        """Hands on a piece, float32 `[n]`."""
        if not self.over.is_set():
            self.samples += len(piece)
            self._pieces.put(piece)

    def end(self, why: Ending) -> None:
        """It is complete."""
        if not self.over.is_set():
            self.ended = why
            self._finish()

    def abort(self, why: str) -> None:
        """It was nothing."""
        if not self.over.is_set():
            self.aborted = why
            self._finish()

    def _finish(self) -> None:
        self.over.set()
        self._pieces.put(None)
