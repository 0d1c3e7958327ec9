"""A microphone with somebody who listens: a thread that turns its sound into utterances."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.endpointing import EndpointOptions
from edge_runtime.perception.listener import Listener
from edge_runtime.perception.microphone import Microphone
from edge_runtime.perception.utterance import Utterance
from edge_runtime.vad import VoiceActivity

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.perception.listener import Gate, Mode, WakeDetector
    from edge_runtime.perception.source import Status

log = logging.getLogger(__name__)
CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class EarOptions:
    """How one microphone is listened to."""

    device: str | int | None = None
    """See `Microphone`."""
    mode: Mode = "voice"
    """What begins an utterance."""
    wake_words: tuple[str, ...] = ()
    """For the mode `wake-word`: names of models or files; see `wake.WakeWords`."""
    wake_threshold: float | None = None
    """Probability from which a wake word was said; None is each model's own."""
    barge_in: bool = True
    """Whether speech during an answer begins an utterance, in every mode."""
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    """How an utterance begins and ends."""


class Ear:
    """Listens to one microphone until it is closed, whatever happens to the device.

    Example:
        with Ear("kitchen", EarOptions(mode="voice"), on_utterance=queue.put):
            utterance = queue.get()
            for samples in utterance:
                ...

    Attributes:
        name: The microphone's.
        status: How it is.
    """

    def __init__(
        self,
        name: str,
        options: EarOptions,
        on_utterance: Callable[[Utterance], None],
        *,
        gate: Gate | None = None,
        on_change: Callable[[Status], None] | None = None,
    ) -> None:
        """Begins to listen.

        Args:
            name: What people call the microphone.
            options: How to listen.
            on_utterance: Called when an utterance begins, in the ear's thread; must return at once.
            gate: See `Listener`.
            on_change: See `Status`.

        Raises:
            EdgeRuntimeError: A wake word that is not there.
        """
        self.name = name
        self._microphone = Microphone(name, options.device, on_change=on_change)
        self.status = self._microphone.status
        self._on_utterance = on_utterance
        self._lock = threading.Lock()
        self._listener = Listener(
            name,
            VoiceActivity(),
            mode=options.mode,
            options=options.endpoint,
            wake=_wake(options),
            gate=gate,
            barge_in=options.barge_in,
        )
        self._thread = threading.Thread(target=self._listen, name=f"ear {name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def push_to_talk(self, *, seconds: float | None = None, until_pause: bool = False) -> Utterance:
        """Records now; see `Listener.push`. It is not given to `on_utterance`.

        Raises:
            EdgeRuntimeError: The microphone is away.
        """
        if self.status.state != "open":
            reason = self.status.detail or "it is being opened"
            raise EdgeRuntimeError(f"{self.status.label} is not there: {reason}", "internal")
        utterance = Utterance(self.name, "push")
        with self._lock:
            self._listener.push(utterance, seconds=seconds, until_pause=until_pause)
        return utterance

    def release(self) -> None:
        """What was pushed to talk is complete; does nothing if nothing was."""
        with self._lock:
            self._listener.release()

    def answering(self, on: bool) -> None:
        """An answer to this microphone begins, or is over: from now on speech is a barge-in, or is none."""
        with self._lock:
            self._listener.answering = on

    def snapshot(self) -> dict[str, Any]:
        """For status pages and metrics: that of `Status`, and `dropped` blocks."""
        return {**self.status.snapshot(), "dropped": self._microphone.dropped}

    def close(self) -> None:
        """Ends it; an utterance that goes on is aborted."""
        self._microphone.close()
        self._thread.join(CLOSE_S)

    def _listen(self) -> None:
        reason = f"{self.status.label} was closed"
        try:
            for block in self._microphone.blocks():
                if block is not None:
                    self._hear(block)
                    continue
                with self._lock:
                    self._listener.broke_off(f"{self.status.label}: {self.status.detail}")
        except Exception as error:
            log.exception("%s: nobody listens any more", self.status.label)
            reason = f"{self.status.label}: internal error"
            self.status.lost(error)
        finally:  # whoever waits for the rest of an utterance must not wait for ever
            with self._lock:
                self._listener.broke_off(reason)

    def _hear(self, block: NDArray[np.float32]) -> None:
        with self._lock:
            utterance = self._listener.feed(block)
        if utterance is not None:
            log.debug("%s: an utterance begins: %s", self.status.label, utterance.trigger)
            self._on_utterance(utterance)


def _wake(options: EarOptions) -> WakeDetector | None:
    if not options.wake_words:
        if options.mode == "wake-word":
            raise EdgeRuntimeError("a microphone in the mode wake-word needs wake_words")
        return None
    from edge_runtime.perception.wake import WakeWords  # noqa: PLC0415 - an extra

    return WakeWords(options.wake_words, options.wake_threshold)
