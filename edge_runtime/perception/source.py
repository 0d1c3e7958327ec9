"""What all sources share: how they say how they are, and how long they wait before they try again."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)

State = Literal["opening", "open", "lost", "closed"]


class SourceLost(Exception):  # noqa: N818 - an event in the life of a source, not an error of ours
    """A device, a server or a program behind a source is gone or silent; the text says which, without secrets."""


class Status:
    """How one source is. Read it from any thread.

    Attributes:
        label: What it is, for people: `microphone kitchen`.
        state: `opening` until it has first yielded something, `open`, `lost` while it is tried again, `closed`.
        detail: Why it was lost last; empty before that.
        since: `time.monotonic()` of the last change of state.
        losses: How often it was lost after it had been open.
        on_change: Called with this status at each change of state, in the source's thread; must return at once.
    """

    def __init__(self, label: str, on_change: Callable[[Status], None] | None = None) -> None:
        self.label = label
        self.state: State = "opening"
        self.detail = ""
        self.since = time.monotonic()
        self.losses = 0
        self.on_change = on_change
        self._logged = ""

    def opened(self) -> None:
        """It has just yielded something."""
        if self.state != "open":
            if self._logged:
                log.info("%s is back after %.0f s", self.label, time.monotonic() - self.since)
                self._logged = ""
            self._set("open")

    def lost(self, reason: object) -> None:
        """It is gone or could not be opened. Only a new reason is logged: attempts go on for days."""
        self.detail = " ".join(str(reason).split())
        if self.detail != self._logged:
            log.warning("%s is away: %s", self.label, self.detail)
            self._logged = self.detail
        if self.state != "lost":
            self.losses += self.state == "open"
            self._set("lost")

    def closed(self) -> None:
        """It will yield nothing more."""
        self._set("closed")

    def snapshot(self) -> dict[str, Any]:
        """For status pages and metrics: `state`, `detail`, `seconds` in that state and `losses`."""
        seconds = round(time.monotonic() - self.since, 1)
        detail = "" if self.state == "open" else self.detail
        return {"state": self.state, "detail": detail, "seconds": seconds, "losses": self.losses}

    def _set(self, state: State) -> None:
        self.state = state
        self.since = time.monotonic()
        if self.on_change:
            self.on_change(self)


def close_all(closes: Iterable[Callable[[], None]], timeout_s: float) -> None:
    """Closes many sources at a time; one that hangs keeps nobody for longer than `timeout_s`."""
    threads = [threading.Thread(target=close, name="close", daemon=True) for close in closes]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


class Backoff:
    """Growing pauses between attempts, with some chance in them so that many sources do not knock together."""

    def __init__(self, first_s: float = 0.5, cap_s: float = 15.0, steady_s: float = 10.0) -> None:
        """Pauses from `first_s`, doubling, up to `cap_s`; from the start again after `steady_s` of success."""
        self._first, self._cap, self._steady = first_s, cap_s, steady_s
        self._next = first_s

    def wait(self, stop: threading.Event, worked_s: float = 0.0) -> bool:
        """Waits, or less if `stop` is set.

        Args:
            stop: Ends the wait.
            worked_s: How long the last attempt went well.

        Returns:
            Whether to try again: False when stopped.
        """
        if worked_s >= self._steady:
            self._next = self._first
        pause = self._next * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        self._next = min(self._cap, 2 * self._next)
        return not stop.wait(pause)
