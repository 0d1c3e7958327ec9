"""The waiting room: bounded, ordered by priority, and it takes a repeated id once.

Knows requests by id, priority and deadline only; safe to use from any thread.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edge_runtime.daemon.requests import Request

Verdict = Literal["accepted", "busy", "repeated"]
StopReason = Literal["cancelled", "expired"]

# Requests, by their keys, that are known again when they are sent again.
REMEMBERED = 4096
# What a request is taken to last before one has been timed.
FIRST_GUESS_S = 5.0


class Running:
    """The request that runs, and the wish that it should stop.

    Attributes:
        request: What runs.
        stop: Set when it should stop; what the model watches.
        reason: Why it should stop; the first one given stays.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.stop = threading.Event()
        self.reason: StopReason | None = None

    def halt(self, reason: StopReason) -> None:
        """Asks it to stop."""
        self.reason = self.reason or reason
        self.stop.set()


class RequestQueue:
    """Requests that wait, and the one that runs."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._heap: list[tuple[int, int, Request]] = []
        self._arrivals = itertools.count()
        self._changed = threading.Condition()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._running: Running | None = None
        self._closed = False
        self._typical_s = FIRST_GUESS_S

    def put(self, request: Request) -> Verdict:
        """Takes a request in, if it is new and there is room. After `close` there is none."""
        with self._changed:
            if request.once and request.key in self._known:
                return "repeated"
            if self._closed or len(self._heap) >= self._capacity:
                return "busy"
            self._known[request.key] = None
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            heapq.heappush(self._heap, (-request.priority, next(self._arrivals), request))
            self._changed.notify_all()
            return "accepted"

    def next(self) -> Running | None:
        """Waits for a request, which then runs until `done`; None once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._heap or self._closed)
            if not self._heap:
                return None
            self._running = Running(heapq.heappop(self._heap)[2])
            return self._running

    def done(self, seconds: float) -> None:
        """The running request is over; `seconds` is what it took."""
        with self._changed:
            self._running = None
            self._typical_s += 0.3 * (seconds - self._typical_s)
            self._changed.notify_all()

    def cancel(self, request_id: str) -> Request | None:
        """Drops a waiting request and returns it, for the caller to answer. A running one is asked to stop."""
        with self._changed:
            for entry in self._heap:
                if entry[2].id == request_id:
                    self._heap.remove(entry)
                    heapq.heapify(self._heap)
                    return entry[2]
            if self._running and self._running.request.id == request_id:
                self._running.halt("cancelled")
            return None

    def cancel_running(self) -> None:
        """Asks whatever runs to stop."""
        with self._changed:
            if self._running:
                self._running.halt("cancelled")

    def close(self) -> list[Request]:
        """Takes no more; returns what was waiting, in order, for the caller to answer."""
        with self._changed:
            self._closed = True
            waiting = [entry[2] for entry in sorted(self._heap, key=lambda entry: entry[:2])]
            self._heap.clear()
            self._changed.notify_all()
            return waiting

    def wait_idle(self, timeout_s: float) -> bool:
        """Waits until nothing runs; False when `timeout_s` passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running is None, timeout_s)

    def retry_after_s(self) -> int:
        """When a client that was told `busy` may try again: about when one place is free, in whole seconds."""
        return max(1, math.ceil(self._typical_s))
