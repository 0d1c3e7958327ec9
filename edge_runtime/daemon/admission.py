"""The waiting room: who may wait, who runs next, and what time has passed by.

Bounded, with at most so many places for one client. Knows requests as tickets only; safe to use from any thread.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edge_runtime.daemon.watchdog import Beating

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_runtime.daemon.requests import Kind, Reply
    from edge_runtime.daemon.worker import Books

StopReason = Literal["cancelled", "expired", "stopping"]

VOICE, TEXT, WATCHING = 2, 1, 0
"""Ranks among requests of the same priority: who spoke stands there and waits; a camera does not mind."""

# What a request is taken to last before one has been timed, in seconds.
FIRST_GUESS_S = 5.0
# When to try again while nothing is let in at all: heat does not go away in a second.
REFUSAL_S = 30


@dataclass(slots=True)
class Ticket:
    """A request that waits or runs."""

    seq: int
    """Its number in its books."""
    id: str
    kind: Kind
    client: str
    reply: Reply
    books: Books
    """Who keeps it and hears its answer."""
    rank: int = TEXT
    priority: int = 0
    deadline: float | None = None
    """`time.monotonic()` after which nobody wants the answer; None: for ever."""
    received: float = 0.0
    """`time.monotonic()` of arrival; of the restart, if there was one."""
    attempts: int = 0
    """How often it was begun and the daemon did not live to end it."""
    started: float | None = None
    """`time.monotonic()` of the start of the work; None: it waits."""
    turn: int = 0
    """Clients take turns: the n-th waiting request of each comes before the n + 1st of any."""


class Running:
    """The request that runs, and the wish that it should stop.

    Attributes:
        ticket: What runs.
        stop: Set when it should stop; what the model watches, and nobody else: each look is a sign of life.
        reason: Why it should stop; the first one given stays.
    """

    def __init__(self, ticket: Ticket, beat: Callable[[], None] = lambda: None) -> None:
        self.ticket = ticket
        self.stop: threading.Event = Beating(beat)
        self.reason: StopReason | None = None

    def halt(self, reason: StopReason) -> None:
        """Asks it to stop."""
        self.reason = self.reason or reason
        self.stop.set()


class Admission:
    """Requests that wait, and the one that runs.

    Attributes:
        on_enter: Called after a request has entered: its deadline may be the next one.
        on_final: Called with each ticket and its final answer, by whoever keeps its books.
        on_refusal: Called with kind, id and error code of what was not let in.
        beat: Called by the worker's thread whenever it looks for work, and between the steps of its work.
        refusal: Why nothing more is let in for now; None: it is.
    """

    def __init__(self, capacity: int, per_client: int) -> None:
        self._capacity = capacity
        self._per_client = per_client
        self._heap: list[tuple[tuple[int, ...], Ticket]] = []
        self._reserved = 0
        self._places: Counter[str] = Counter()
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._changed = threading.Condition()
        self._running: Running | None = None
        self._closed = False
        self._typical_s = FIRST_GUESS_S
        self._arrivals = itertools.count()
        self.on_enter: Callable[[], None] = lambda: None
        self.on_final: Callable[[Ticket, Mapping[str, Any]], None] = lambda *_: None
        self.on_refusal: Callable[[str, str, str], None] = lambda *_: None
        self.beat: Callable[[], None] = lambda: None
        self.refusal: str | None = None

    def reserve(self, client: str) -> str | None:
        """Takes a place for a request that is about to be stored; or says why there is none."""
        with self._changed:
            if self._closed:
                return "the daemon is stopping"
            if self.refusal is not None:
                return self.refusal
            if len(self._heap) + self._reserved >= self._capacity:
                return "too many requests are waiting"
            if self._places[client] >= self._per_client:
                return f"{self._per_client} requests of this client are waiting already"
            self._reserved += 1
            self._places[client] += 1
            return None

    def release(self, client: str) -> None:
        """Gives back a reserved place: the request could not be stored."""
        with self._changed:
            self._reserved -= 1
            self._leave(client)

    def enter(self, ticket: Ticket, *, reserved: bool = True) -> None:
        """Lets a request wait for its turn. What was accepted before a restart enters without a reservation."""
        with self._changed:
            if reserved:
                self._reserved -= 1
            else:
                self._places[ticket.client] += 1
            ticket.turn = max(self._turn, self._turns.get(ticket.client, -1) + 1)
            self._turns[ticket.client] = ticket.turn
            # Whatever the daemon died of once waits until all others have been served.
            key = (min(ticket.attempts, 1), -ticket.priority, -ticket.rank, ticket.turn, next(self._arrivals))
            heapq.heappush(self._heap, (key, ticket))
            self._changed.notify_all()
        self.on_enter()

    def next(self) -> Running | None:
        """Waits for a request, which then runs until `done`; None once the room is closed."""
        with self._changed:
            self.beat()
            while not (self._heap or self._closed):
                self._changed.wait()
                self.beat()
            if self._closed:
                return None
            ticket = heapq.heappop(self._heap)[1]
            self._turn = max(self._turn, ticket.turn)
            ticket.started = time.monotonic()
            self._running = Running(ticket, self.beat)
            return self._running

    def done(self, seconds: float) -> None:
        """The running request is over; `seconds` is what it took."""
        with self._changed:
            if self._running:
                self._leave(self._running.ticket.client)
            self._running = None
            self._typical_s += 0.3 * (seconds - self._typical_s)
            self._changed.notify_all()

    def cancel(self, request_id: str, topic: str | None = None) -> list[Ticket]:
        """Takes out and returns waiting requests of that id, for the caller to answer; asks a running one to stop.

        Args:
            request_id: The id.
            topic: Only requests whose answers go there; None: whosoever they are.
        """
        return self.withdraw(lambda ticket: ticket.id == request_id and topic in {None, ticket.reply.topic})

    def withdraw(self, meant: Callable[[Ticket], bool]) -> list[Ticket]:
        """Takes out and returns the waiting requests that are `meant`; asks a running one to stop."""
        with self._changed:
            if self._running and meant(self._running.ticket):
                self._running.halt("cancelled")
            return self._take_out(meant)

    def expire(self, now: float) -> list[Ticket]:
        """Takes out and returns what has waited past its deadline; a running one is asked to stop."""
        with self._changed:

            def late(ticket: Ticket) -> bool:
                return ticket.deadline is not None and ticket.deadline <= now

            if self._running and late(self._running.ticket):
                self._running.halt("expired")
            return self._take_out(late)

    def next_deadline(self) -> float | None:
        """The earliest deadline of all who wait or run and were not asked to stop yet."""
        with self._changed:
            tickets = [ticket for _, ticket in self._heap]
            if self._running and self._running.reason is None:
                tickets.append(self._running.ticket)
            return min((ticket.deadline for ticket in tickets if ticket.deadline is not None), default=None)

    @property
    def closed(self) -> bool:
        """Whether the daemon is ending."""
        return self._closed

    def close(self) -> None:
        """Takes no more and gives out no more; what waits stays stored for the next start."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop_running(self) -> None:
        """Asks whatever runs to stop, to be done again at the next start."""
        with self._changed:
            if self._running:
                self._running.halt("stopping")

    def wait_idle(self, timeout_s: float) -> bool:
        """Waits until nothing runs; False when `timeout_s` passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running is None, timeout_s)

    def take_out(self, meant: Callable[[Ticket], bool]) -> list[Ticket]:
        """Takes out and returns the waiting requests that are `meant`."""
        with self._changed:
            return self._take_out(meant)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._heap)

    @property
    def busy(self) -> bool:
        """Whether one runs."""
        return self._running is not None

    def poke(self) -> None:
        """Makes the worker beat, if it waits."""
        with self._changed:
            self._changed.notify_all()

    def resize(self, capacity: int, per_client: int) -> None:
        """Changes the limits; who waits already stays."""
        with self._changed:
            self._capacity, self._per_client = capacity, per_client

    def retry_after_s(self) -> int:
        """When a client that was told `busy` may try again: about when one place is free, in whole seconds."""
        if self.refusal is not None:
            return REFUSAL_S
        return max(1, math.ceil(self._typical_s))

    def _take_out(self, meant: Callable[[Ticket], bool]) -> list[Ticket]:
        taken = [ticket for _, ticket in self._heap if meant(ticket)]
        if taken:
            self._heap = [entry for entry in self._heap if not meant(entry[1])]
            heapq.heapify(self._heap)
            for ticket in taken:
                self._leave(ticket.client)
        return taken

    def _leave(self, client: str) -> None:
        self._places[client] -= 1
        if self._places[client] <= 0:
            del self._places[client]
            self._turns.pop(client, None)
