"""Takes in what arrives, keeps the books, and sees every answer to the broker.

A message is acknowledged when what becomes of it is stored: the request, or the answer that refuses it. An answer is
stored before it is sent and forgotten when the broker has acknowledged it. So a crash at any point leaves either the
broker with the message, or the store with the request, or the store with the answer. What is left to chance is the
moment between sending an answer and hearing that it has come: then it is sent again, the same to the letter.
"""

from __future__ import annotations

import collections
import json
import logging
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from edge_runtime.daemon.admission import Ticket
from edge_runtime.daemon.intake import Arrival, Intake, refusal_of
from edge_runtime.daemon.requests import Reply
from edge_runtime.daemon.store import Answer
from edge_runtime.daemon.worker import STOPPED, error_body
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.daemon.admission import Admission
    from edge_runtime.daemon.messages import Message
    from edge_runtime.daemon.requests import Parser, Request
    from edge_runtime.daemon.store import Store, StoredRequest
    from edge_runtime.daemon.topics import Topics

log = logging.getLogger(__name__)

# What waits to be stored may take this many times the payload limit in memory; then the line is not read for a while.
INBOX_PAYLOADS = 2
# An answer that the broker does not take is offered again at this interval, for this long (someone may mend its ACL).
OFFER_AGAIN_S = 30.0
OFFER_FOR_S = 3600.0
MOST_PARKED = 1000
# What could not be forgotten because the disk is full is tried again at this interval.
FORGET_AGAIN_S = 5.0
# Quiet time after which the file is tidied.
TIDY_AFTER_S = 1.0
DISK_RETRY_S = 30


class Line(Protocol):
    """What the desk needs of `mqtt.Link`."""

    topics: Topics

    def publish(self, topic: str, body: str, correlation: bytes | None = None, token: object = None) -> None:
        """Sends an answer; `Desk.delivered` hears the end of it."""

    def publish_delta(self, topic: str, body: str, correlation: bytes | None = None) -> None:
        """Sends a piece of one, which may be lost."""

    def acknowledge(self, message: Message) -> None:
        """Lets the broker forget a message."""


@dataclass(frozen=True, slots=True)
class _Delivery:
    """The broker has an answer, or says why it does not take it."""

    answer: Answer
    problem: str | None


class Desk:
    """What lies between the line, the store and the waiting room. `run` is the body of its thread."""

    def __init__(self, store: Store, admission: Admission, parser: Parser) -> None:
        self._store = store
        self._admission = admission
        self._parser = parser
        self._link: Line
        self._intake: Intake
        self._inbox: collections.deque[Message | _Delivery] = collections.deque()
        self._held = 0
        self._most_held = INBOX_PAYLOADS * parser.settings.limits.payload_bytes
        self._changed = threading.Condition()
        self._closed = self._entered = False
        self.beat: Callable[[], None] = lambda: None
        self._parked: dict[int, tuple[float, Answer]] = {}
        self._unforgotten: tuple[set[int], set[int]] = (set(), set())
        self._unforgotten_due: float | None = None
        self._disk_said = 0.0
        self.on_accept: Callable[[Ticket, Request], None] = lambda *_: None

    def restore(self, link: Line) -> None:
        """Takes up what was left at the last end: answers to be sent, requests to be done.

        Args:
            link: Through which everything goes from now on.
        """
        self._link, self._intake = link, Intake(link.topics, self._parser, self._admission, self)
        answers, requests = self._store.answers(), self._store.requests()
        for answer in answers:
            self._send(answer)
        for stored in requests:
            ticket = self._ticket(stored, self._store.deadline_of(stored))
            if stored.attempts >= self._parser.settings.limits.attempts:
                log.error(
                    "%s %s is given up: the daemon ended %d times during it", stored.kind, stored.id, stored.attempts
                )
                says = f"the daemon ended {stored.attempts} times while it worked on this request"
                self.finish(ticket, error_body(ticket.id, says, "internal"))
            else:
                self._admission.enter(ticket, reserved=False)
        if answers or requests:
            log.info("taken up from before: %d requests, %d answers", len(requests), len(answers))

    def entered(self) -> None:
        """Notes that a request has entered the waiting room, whosoever it is."""
        with self._changed:
            self._entered = True
            self._changed.notify_all()

    # --- the line's side -------------------------------------------------------------------------------------------

    def arrived(self, message: Message) -> None:
        """Puts a message in the inbox. Waits while too much is there: then the broker waits, too."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._held or self._held < self._most_held)
            self._inbox.append(message)
            self._held += len(message.payload)
            self._changed.notify_all()

    def delivered(self, token: object, problem: str | None) -> None:
        """Notes that an answer has reached the broker, or why not."""
        if isinstance(token, Answer):
            with self._changed:
                self._inbox.append(_Delivery(token, problem))
                self._changed.notify_all()

    # --- the worker's side -----------------------------------------------------------------------------------------

    def begin(self, ticket: Ticket) -> Request:
        """Counts a start of the request, and gives it."""
        try:
            payload = self._store.begin(ticket.seq)
        except sqlite3.Error as error:  # a start that is not counted is no reason not to answer
            self._say_disk(error)
            payload = self._store.payload(ticket.seq)
        return self._parser.parse(ticket.kind, payload)

    def finish(self, ticket: Ticket, body: dict[str, Any]) -> None:
        """Stores and sends a request's answer. One that cannot be stored is sent all the same."""
        text = json.dumps(body, ensure_ascii=False)
        try:
            answer = self._store.finish(ticket.seq, text)
        except sqlite3.Error as error:
            self._say_disk(error)
            reply = ticket.reply
            answer = Answer(None, ticket.id, reply.topic, reply.correlation, text, time.time(), request=ticket.seq)
        self._send(answer)
        self._admission.on_final(ticket, body)

    def hand_back(self, ticket: Ticket) -> None:
        """Leaves the request stored, for the next start of the daemon."""
        try:
            self._store.hand_back(ticket.seq)
        except sqlite3.Error as error:
            self._say_disk(error)

    def delta(self, ticket: Ticket, body: dict[str, Any]) -> None:
        """Sends a piece of an answer: on `answer/delta`, or on the level `delta` under the requester's own topic."""
        self._link.publish_delta(
            f"{ticket.reply.topic}/delta", json.dumps(body, ensure_ascii=False), ticket.reply.correlation
        )

    # --- the desk's own thread -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Works until `close`, and then until the inbox is empty."""
        while True:
            self.beat()
            with self._changed:
                self._changed.wait_for(lambda: self._inbox or self._closed or self._entered, self._idle_s())
                if self._closed and not self._inbox:
                    return
                events = list(self._inbox)
                self._inbox.clear()
                entered, self._entered = self._entered, False
            if entered and not events:
                continue  # somebody in this process asks: what is due first may be another
            try:
                self._work(events)
            except Exception:
                # Nothing was acknowledged: the broker keeps what is lost here until the next connection.
                log.exception("%d messages could not be dealt with", len(events))
            with self._changed:
                self._held -= sum(len(event.payload) for event in events if not isinstance(event, _Delivery))
                self._changed.notify_all()

    def close(self) -> None:
        """Ends `run`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self, events: list[Message | _Delivery]) -> None:
        arrivals: list[Arrival] = []
        for event in events:
            if isinstance(event, _Delivery):
                continue
            if event.name != "cancel":
                arrivals.append(self._intake.look_at(event))
                continue
            self._take(arrivals)
            arrivals = []
            self._cancel(event)
        self._take(arrivals)
        self._settle([event for event in events if isinstance(event, _Delivery)])
        now = time.monotonic()
        for ticket in self._admission.expire(now):
            ticket.books.finish(ticket, error_body(ticket.id, STOPPED["expired"], "expired"))
        for seq in [seq for seq, (due, _) in self._parked.items() if due <= now]:
            self._send(self._parked.pop(seq)[1])
        if not events:
            try:
                self._store.tidy()
            except sqlite3.Error as error:
                self._say_disk(error)

    def _idle_s(self) -> float | None:
        """How long there is nothing to do unless something comes; None: for ever."""
        now = time.monotonic()
        times = [due for due, _ in self._parked.values()]
        times += [due for due in (self._admission.next_deadline(), self._unforgotten_due) if due is not None]
        if self._store.untidy:
            times.append(now + TIDY_AFTER_S)
        return max(0.0, min(times) - now) if times else None

    def _take(self, arrivals: list[Arrival]) -> None:
        """Decides on messages and stores what becomes of them, all in one transaction; one by one where that fails."""
        try:
            self._take_together(arrivals)
        except sqlite3.Error as error:
            if len(arrivals) > 1:
                for arrival in arrivals:
                    self._take([arrival])
                return
            self._say_disk(error)
            self._refuse_unstored(arrivals[0])

    def _take_together(self, arrivals: list[Arrival]) -> None:
        if not arrivals or self._admission.closed:  # what comes at the end stays with the broker until the next start
            return
        tickets: list[Ticket] = []
        requests: list[Request] = []
        refusals: list[Answer] = []
        try:
            with self._store.taking() as taking:
                for arrival in arrivals:
                    decided = self._intake.decide(taking, arrival)
                    if isinstance(decided, Ticket):
                        tickets.append(decided)
                        requests.append(cast("Request", arrival.outcome))
                    elif decided is not None:
                        refusals.append(decided)
        except BaseException:
            for ticket in tickets:
                self._admission.release(ticket.client)
            raise
        for ticket, request in zip(tickets, requests, strict=True):
            self.on_accept(ticket, request)
            self._admission.enter(ticket)
        for refusal in refusals:
            self._send(refusal)
        for arrival in arrivals:
            self._link.acknowledge(arrival.message)

    def _refuse_unstored(self, arrival: Arrival) -> None:
        """The disk takes nothing: whoever asks hears it, and may ask again."""
        body = error_body(arrival.id, "the box cannot store requests now", "busy", retry_after_s=DISK_RETRY_S)
        self._send(refusal_of(arrival, arrival.outcome if isinstance(arrival.outcome, dict) else body))
        self._link.acknowledge(arrival.message)

    def _cancel(self, message: Message) -> None:
        try:
            request_id = self._parser.cancelled(message.payload)
        except EdgeRuntimeError as error:
            log.warning("a cancel is ignored: %s", error)
        else:
            for ticket in self._admission.cancel(request_id, message.response_topic):
                ticket.books.finish(ticket, error_body(ticket.id, STOPPED["cancelled"], "cancelled"))
        self._link.acknowledge(message)

    def _settle(self, deliveries: list[_Delivery]) -> None:
        """Forgets answers that have come to the broker; those that it does not take are offered again later."""
        answers, requests = self._unforgotten
        for delivery in deliveries:
            answer = delivery.answer
            if delivery.problem is not None and self._park(answer):
                continue
            if answer.seq is not None:
                answers.add(answer.seq)
            elif answer.request is not None:
                requests.add(answer.request)
        if not answers and not requests:
            return
        try:
            self._store.forget(answers, requests)
            answers.clear()
            requests.clear()
            self._unforgotten_due = None
        except sqlite3.Error as error:
            self._say_disk(error)
            self._unforgotten_due = time.monotonic() + FORGET_AGAIN_S

    def _park(self, answer: Answer) -> bool:
        """Keeps an answer that the broker does not take for another try; False when it has had its time."""
        if answer.seq is None or len(self._parked) >= MOST_PARKED or time.time() - answer.written > OFFER_FOR_S:
            log.error("the answer to %s is given up: the broker does not take it", answer.id)
            return False
        self._parked[answer.seq] = (time.monotonic() + OFFER_AGAIN_S, answer)
        return True

    def _send(self, answer: Answer) -> None:
        self._link.publish(answer.topic, answer.body, answer.correlation, answer)

    def _say_disk(self, error: sqlite3.Error) -> None:
        """Logs what is wrong with the disk, once a minute."""
        if time.monotonic() - self._disk_said > 60 or not self._disk_said:
            self._disk_said = time.monotonic()
            log.error("the store of requests cannot be written: %s", error)

    def _ticket(self, stored: StoredRequest, deadline: float | None) -> Ticket:
        return Ticket(
            seq=stored.seq,
            id=stored.id,
            kind=stored.kind,  # type: ignore[arg-type]  # written by `_row`
            client=stored.client,
            reply=Reply(stored.topic, stored.correlation),
            books=self,
            rank=stored.rank,
            priority=stored.priority,
            deadline=deadline,
            received=time.monotonic(),
            attempts=stored.attempts,
        )
