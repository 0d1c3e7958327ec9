"""A question that is still being spoken: its sound is encoded and read while it goes on."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.engine.onnx.encoders import Heard

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.engine import OnnxEngine
    from edge_runtime.engine.onnx.streaming import AudioStream
    from edge_runtime.engine.protocol import Piece, Request

STEP = 24
"""Soft tokens, of 40 ms each, that are read at a time: weights are streamed from memory once for all of them."""


class Listening:
    """Takes a sound as it comes; the request's last message has it as its last sound, given as anything.

    What is read ahead is as good as a saved prefix: another request may run between two calls of `feed`, and if it
    took the place of what was read, that is read again.
    """

    def __init__(self, engine: OnnxEngine, request: Request, stream: AudioStream) -> None:
        self._engine, self._request, self._stream = engine, request, stream
        self._tokens: list[NDArray[np.float32]] = []
        self._count = self._read = 0
        self._digest = uuid.uuid4().bytes

    @property
    def room(self) -> int:
        """Samples that `feed` still takes."""
        return self._stream.room

    def feed(self, samples: NDArray[np.float32]) -> None:
        """Takes any number of samples, float32 `[n]`, mono, in -1..1, at 16 kHz.

        Raises:
            EdgeRuntimeError: There is no `room` for so many; none of them was taken.
        """
        self._take(self._stream.push(samples))
        if self._count - self._read >= STEP:
            ready = self._engine.prepare(self._request, self._heard()).ready
            span = ready.prompt.spans[-1]
            self._engine.read_ahead(ready, span.start + span.count)
            self._read = self._count

    def finish(self) -> Generator[Piece, None, None]:
        """The answer; see `Engine.run`."""
        self._take(self._stream.finish())
        return self._engine.answer(self._engine.prepare(self._request, self._heard()))

    def _take(self, tokens: NDArray[np.float32]) -> None:
        self._tokens.append(tokens)
        self._count += len(tokens)

    def _heard(self) -> Heard:
        return Heard(np.concatenate(self._tokens), self._digest)
