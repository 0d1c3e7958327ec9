"""A microphone that is always there: 16 kHz mono blocks, whatever the device, however often it is unplugged."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.media import SAMPLE_RATE
from edge_runtime.perception.child import Child
from edge_runtime.perception.pcm import BLOCK_S
from edge_runtime.perception.source import Backoff, SourceLost, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

BLOCK = int(SAMPLE_RATE * BLOCK_S)
"""Samples of one block: 512, 32 ms."""
OPEN_S = 10.0
"""A sound card may take this long to give its first block."""
STALL_S = 5.0
"""A sound card that gives nothing for this long is opened again."""


class Microphone:
    """Yields sound for as long as it is wanted.

    Example:
        microphone = Microphone("kitchen", "USB")
        for block in microphone.blocks():
            ...

    Attributes:
        status: How it is.
        dropped: Blocks before which the sound system lost samples, since the start.
    """

    def __init__(
        self, name: str, device: str | int | None = None, *, on_change: Callable[[Status], None] | None = None
    ) -> None:
        """Opens nothing yet.

        Args:
            name: What people call it.
            device: Name of the sound input or part of it, or its index; None is the system's default.
            on_change: See `Status`.
        """
        self.name = name
        self.status = Status(f"microphone {name}", on_change)
        self.dropped = 0
        self._device = "" if device is None else str(device)
        self._closing = threading.Event()
        self._child: Child | None = None

    def blocks(self) -> Iterator[NDArray[np.float32] | None]:
        """Sound as float32 `[BLOCK]` in -1..1, in real time, until `close`; None where it broke off.

        To be used by one thread, which must take each block within about a second: what it doesn't take is dropped by
        the sound system and counted.
        """
        backoff = Backoff()
        while not self._closing.is_set():
            opened = time.monotonic()
            try:
                yield from self._record()
            except SourceLost as lost:
                if self._closing.is_set():
                    break
                self.status.lost(lost)
                yield None
                if not backoff.wait(self._closing, time.monotonic() - opened):
                    break
        self.status.closed()

    def close(self) -> None:
        """Ends `blocks`, from any thread."""
        self._closing.set()
        if child := self._child:
            child.kill()

    def _record(self) -> Iterator[NDArray[np.float32]]:
        with Child(_program("record", self._device, str(SAMPLE_RATE))) as child:
            self._child = child
            if self._closing.is_set():
                return
            rate = _greeting(child)["rate"]
            size = 2 * round(rate * BLOCK_S)
            reblock = Reblock(rate)
            while True:
                data = child.read(1 + size, STALL_S)
                self.status.opened()
                self.dropped += data[0]
                yield from reblock(np.frombuffer(data, "<i2", offset=1).astype(np.float32) / np.float32(32768))


class Reblock:
    """Blocks of `BLOCK` samples at 16 kHz from any number of samples at any rate."""

    def __init__(self, rate: int) -> None:
        """`rate`: samples per second of what it will be given."""
        self._resampler = None
        if rate != SAMPLE_RATE:
            import soxr  # noqa: PLC0415 - most devices don't need it

            self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="MQ")
        self._rest = np.zeros(0, np.float32)

    def __call__(self, samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Takes float32 `[n]`, yields float32 `[BLOCK]` none or more times."""
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        self._rest = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        while len(self._rest) >= BLOCK:
            yield self._rest[:BLOCK]
            self._rest = self._rest[BLOCK:]


def sound_devices() -> list[dict[str, Any]]:
    """The sound devices that PortAudio finds: `index`, `name`, channels of `inputs` and `outputs`.

    Raises:
        EdgeRuntimeError: PortAudio is missing.
    """
    try:
        with Child(_program("list")) as child:
            devices: list[dict[str, Any]] = _greeting(child)["devices"]
    except SourceLost as lost:
        raise EdgeRuntimeError(f"sound devices cannot be listed: {lost}") from None
    return devices


def open_output(device: str, rate: int) -> tuple[Child, int]:
    """A program that plays what is written to it, and the rate in Hz at which it wants int16 mono.

    Args:
        device: As for `Microphone`; "" is the default.
        rate: Hz, if the device can do it.

    Raises:
        SourceLost: There is no such device, or it cannot be opened.
    """
    child = Child(_program("play", device, str(rate)), stdin=True)
    try:
        return child, int(_greeting(child)["rate"])
    except SourceLost:
        child.close()
        raise


def _program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "edge_runtime.perception.pcm", *arguments]


def _greeting(child: Child) -> dict[str, Any]:
    line = child.read_line(OPEN_S)
    try:
        greeting: dict[str, Any] = json.loads(line)
    except ValueError:
        raise SourceLost("the sound program does not answer") from None
    return greeting
