"""Sound as a browser sends it, cut into what somebody said: by a button, or by listening for speech and pauses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.media import SAMPLE_RATE
from edge_runtime.perception.listener import Listener
from edge_runtime.perception.utterance import Utterance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.perception.endpointing import EndpointOptions
    from edge_runtime.perception.listener import Detector

BLOCK = 512
"""Samples that the detector of speech takes at a time."""
NAME = "browser"
# Speech after its beginning that interrupts an answer: a cough is over by then.
BARGE_IN_S = 0.16
# Nobody speaks faster than time goes, but a line may hold sound back and then send it all at once.
BURST_S = 30.0


class TooFastError(Exception):
    """More sound came than can have been spoken."""


class Ear:
    """Hears one connection.

    Attributes:
        utterance: What is being said, or was said last; None: nothing yet.
    """

    def __init__(self) -> None:
        self.utterance: Utterance | None = None
        self._listener: Listener | None = None
        self._rest = b""
        self._limit = 0
        self._loud_at = 0
        self._received_s = 0.0
        self._began: float | None = None

    @property
    def hands_free(self) -> bool:
        """Whether speech begins an utterance by itself."""
        return self._listener is not None

    @property
    def hearing(self) -> bool:
        """Whether somebody is speaking."""
        return self.utterance is not None and not self.utterance.over.is_set()

    @property
    def insists(self) -> bool:
        """Whether somebody has spoken for long enough to interrupt an answer."""
        return self.hearing and self.utterance is not None and self.utterance.samples >= self._loud_at

    def listen(self, detector: Detector, options: EndpointOptions) -> None:
        """Listens for speech from now on."""
        self.close("it begins anew")
        self._listener = Listener(NAME, detector, options=options)

    def record(self, limit_s: float) -> None:
        """What comes from now on is said, until `release`, for `limit_s` seconds at most."""
        self.close("it begins anew")
        self.utterance, self._limit, self._loud_at = Utterance(NAME, "push"), int(limit_s * SAMPLE_RATE), 0

    def release(self) -> None:
        """The button is let go."""
        if self.utterance is not None:
            self.utterance.end("stopped")

    def close(self, why: str) -> None:
        """Hears nothing from now on."""
        if self.utterance is not None:
            self.utterance.abort(why)
        self.utterance = self._listener = None
        self._rest = b""

    def answering(self, *, on: bool) -> None:
        """Says whether an answer is being made: speech is then a barge-in."""
        if self._listener is not None:
            self._listener.answering = on

    def blocks(self, data: bytes, now: float) -> list[NDArray[np.float32]]:
        """The sound in `data`, 16-bit little-endian mono at 16 kHz, as blocks of float32 `[512]`.

        Args:
            data: May begin and end in the middle of a sample.
            now: A clock in seconds.

        Raises:
            TooFastError: It came faster than anybody speaks.
        """
        if self._began is None:
            self._began = now
        self._received_s += len(data) / 2 / SAMPLE_RATE
        behind = self._received_s - (now - self._began)
        if behind > BURST_S:
            raise TooFastError
        if behind < 0:  # silence on the line is no credit for later
            self._began = now - self._received_s
        data = self._rest + data
        size = len(data) // (2 * BLOCK) * 2 * BLOCK
        self._rest = data[size:]
        return list((np.frombuffer(data[:size], "<i2").astype(np.float32) / 32768.0).reshape(-1, BLOCK))

    def feed(self, block: NDArray[np.float32]) -> Utterance | None:
        """Hears a block.

        Returns:
            What has just been said to its end, or turned out to be nothing; None: neither.
        """
        if self._listener is not None:
            begun = self._listener.feed(block)
            if begun is not None:
                self.utterance, self._loud_at = begun, begun.samples + int(BARGE_IN_S * SAMPLE_RATE)
        elif self.utterance is not None:
            self.utterance.push(block)
            if self.utterance.samples >= self._limit:
                self.utterance.end("limit")
        return self.said()

    def said(self) -> Utterance | None:
        """What has been said to its end and was not taken yet."""
        said = self.utterance
        if said is None or not said.over.is_set():
            return None
        self.utterance = None
        return said
