"""A loudspeaker that reads an answer aloud while it is being written."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.perception.microphone import open_output
from edge_runtime.perception.sentences import Sentences
from edge_runtime.perception.source import SourceLost, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_runtime.perception.child import Child
    from edge_runtime.perception.echo import Gate
    from edge_runtime.perception.voice import Synthesis, Voice

DRAIN_S = 10.0
"""What the sound system may still have to play when all is written; more means that it hangs."""


class Speaker:
    """One loudspeaker; one speech at a time, the newest.

    Example:
        speech = speaker.begin()
        for piece in model.chat(messages):
            speech.push(piece.text)
        speech.finish()

    Attributes:
        status: Whether the last speech could be heard.
    """

    def __init__(
        self,
        voice: Voice,
        device: str | int | None = None,
        *,
        gate: Gate | None = None,
        on_change: Callable[[Status], None] | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            voice: Who speaks.
            device: Name of the sound output or part of it, or its index; None is the system's default.
            gate: Closed while something is said; None with echo cancellation.
            on_change: See `Status`.
        """
        self.status = Status("loudspeaker", on_change)
        self._voice, self._device, self._gate = voice, "" if device is None else str(device), gate
        self._current: Speech | None = None

    @property
    def speaking(self) -> bool:
        """Whether a speech is going on."""
        return self._current is not None and not self._current.over.is_set()

    def begin(self) -> Speech:
        """A new speech; one that goes on is cancelled. What goes wrong is in `status`, nothing is raised."""
        self.cancel()
        self._current = Speech(self._voice, self._device, self._gate, self.status)
        return self._current

    def say(self, text: str) -> Speech:
        """Says a text that is complete."""
        speech = self.begin()
        speech.push(text)
        speech.finish()
        return speech

    def cancel(self) -> None:
        """Silence, within 100 ms."""
        if self._current is not None:
            self._current.cancel()

    def snapshot(self) -> dict[str, Any]:
        """For status pages and metrics; see `Status`."""
        return self.status.snapshot()

    def close(self) -> None:
        """Silence for good."""
        self.cancel()
        self.status.closed()


class Speech:
    """Something that is being said.

    Attributes:
        over: Set when all of it was heard, or when it was cancelled or failed.
        cancelled: Whether it was cancelled.
        heard: Whether sound has gone out.
    """

    def __init__(self, voice: Voice, device: str, gate: Gate | None, status: Status) -> None:
        self.over = threading.Event()
        self.cancelled = False
        self.heard = False
        self._voice, self._device, self._gate, self._status = voice, device, gate, status
        self._sentences = Sentences()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._synthesis: Synthesis | None = None
        self._output: Child | None = None
        threading.Thread(target=self._run, name="speech", daemon=True).start()

    def push(self, text: str) -> None:
        """The next piece of the text. Never waits."""
        for sentence in self._sentences.push(text):
            self._queue.put(sentence)

    def finish(self) -> None:
        """Nothing follows."""
        for sentence in self._sentences.finish():
            self._queue.put(sentence)
        self._queue.put(None)

    def cancel(self) -> None:
        """Ends it, sound that is already on its way included. From any thread; never waits."""
        with self._lock:
            if self.over.is_set():
                return
            self.cancelled = True
            for child in (self._output, self._synthesis):
                if child is not None:
                    child.kill()
        self._queue.put(None)

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                self._speak(stack)
        except SourceLost as lost:
            if not self.cancelled:
                self._status.lost(lost)
        finally:
            self.over.set()

    def _speak(self, stack: contextlib.ExitStack) -> None:
        """Says it all. The voice and the loudspeaker are made ready while the first sentence is still being written."""
        self._synthesis = self._voice.begin()
        stack.callback(self._synthesis.kill)
        output, rate = open_output(self._device, getattr(self._synthesis, "rate", 0) or 22_050)
        stack.callback(output.close)
        with self._lock:
            self._output = output
            if self.cancelled:
                return
        for piece in self._resampled(self._synthesis.sound(self._written()), rate):
            if self._gate is not None and not self.heard:
                stack.enter_context(self._gate)
            output.write(piece)
            if not self.heard:
                self.heard = True
                self._status.opened()
        output.end_input()
        with contextlib.suppress(subprocess.TimeoutExpired):
            output.process.wait(DRAIN_S)

    def _written(self) -> Iterator[str]:
        while not self.cancelled and (sentence := self._queue.get()) is not None:
            yield sentence

    def _resampled(self, pieces: Iterator[bytes], rate: int) -> Iterator[bytes]:
        """int16 mono at the loudspeaker's rate."""
        resampler: Any = None
        left = b""
        for piece in pieces:
            left += piece
            whole, left = left[: len(left) // 2 * 2], left[len(left) // 2 * 2 :]
            own = self._synthesis.rate if self._synthesis else rate
            if own == rate:
                yield whole
                continue
            if resampler is None:
                import soxr  # noqa: PLC0415 - most loudspeakers don't need it

                resampler = soxr.ResampleStream(own, rate, 1, dtype="int16", quality="MQ")
            yield resampler.resample_chunk(np.frombuffer(whole, "<i2")).tobytes()
        if resampler is not None:
            yield resampler.resample_chunk(np.zeros(0, np.int16), last=True).tobytes()
