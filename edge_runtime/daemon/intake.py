"""What becomes of a message: a place in the waiting room, a refusal, or nothing, because it came before.

Two messages are the same request when they carry the same id, ask for the same kind of thing and want their answers on
the same topic; without an id, only when the broker says that it is delivering one again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.daemon.admission import TEXT, VOICE, Ticket
from edge_runtime.daemon.limits import ID_LENGTH
from edge_runtime.daemon.requests import Reply, Request
from edge_runtime.daemon.store import Answer, NewRequest
from edge_runtime.daemon.worker import FAILED, error_body
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from edge_runtime.daemon.admission import Admission
    from edge_runtime.daemon.messages import Message
    from edge_runtime.daemon.requests import Kind, Parser
    from edge_runtime.daemon.store import Taking
    from edge_runtime.daemon.topics import Topics
    from edge_runtime.daemon.worker import Books

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that asks for an answer, looked at.

    Attributes:
        message: As it came.
        kind: What it asks for.
        key: Equal for two messages that are the same request.
        id: What its answer will carry.
        named: Whether the message gave that id itself.
        reply: Where the answer goes.
        outcome: The request, or the body of the answer that refuses it.
    """

    message: Message
    kind: Kind
    key: bytes
    id: str
    named: bool
    reply: Reply
    outcome: Request | dict[str, Any]


class Intake:
    """Looks at messages and decides on them."""

    def __init__(self, topics: Topics, parser: Parser, admission: Admission, books: Books) -> None:
        self._topics = topics
        self._parser = parser
        self._admission = admission
        self._books = books

    def look_at(self, message: Message) -> Arrival:
        """Parses a message that is no `cancel`, and finds out whose it is. Nothing is decided yet; never raises."""
        kind: Kind = message.name  # type: ignore[assignment]
        topic, outcome = message.answer_topic, self._parsed(kind, message)
        if message.response_topic is not None:
            if problem := self._topics.problem(message.response_topic):
                outcome = EdgeRuntimeError(f"the response topic cannot be used: {problem}")
            else:
                topic = message.response_topic
        given = outcome.id if isinstance(outcome, Request) else self._parser.named(message.payload)
        request_id = given or _readable(message.correlation) or uuid.uuid4().hex
        # Correlation Data is no id: clients count it from 1 at every start. A packet identifier is one for as long as
        # the broker has not heard that we have the message.
        same = given.encode() if given else b"%d " % message.mid + message.payload + (message.correlation or b"")
        key = hashlib.sha256(f"{bool(given)} {kind} {topic} ".encode() + same).digest()
        if isinstance(outcome, EdgeRuntimeError):
            outcome_or_body: Request | dict[str, Any] = error_body(request_id, str(outcome), outcome.code)
        else:
            outcome_or_body = outcome
        return Arrival(message, kind, key, request_id, bool(given), Reply(topic, message.correlation), outcome_or_body)

    def decide(self, taking: Taking, arrival: Arrival) -> Ticket | Answer | None:
        """A ticket with a reserved place, a refusal, both stored; or None: it is known already.

        Raises:
            sqlite3.Error: Nothing could be stored, and no place is reserved.
        """
        message = arrival.message
        known = taking.known(arrival.key)
        if known is not None:
            mid, accepted = known
            if (message.repeated and mid == message.mid) or (accepted and arrival.named):
                log.info("%s %s was sent again: it is answered once", arrival.kind, arrival.id)
                return None
        outcome = arrival.outcome
        client = client_of(message.response_topic, arrival.id if arrival.named else None)
        if isinstance(outcome, Request) and (problem := self._admission.reserve(client)):
            outcome = error_body(arrival.id, problem, "busy", retry_after_s=self._admission.retry_after_s())
        if isinstance(outcome, dict):
            self._admission.on_refusal(arrival.kind, arrival.id, outcome["error"]["code"])
            return taking.refuse(arrival.key, message.mid, refusal_of(arrival, outcome))
        ticket = _ticket(arrival, outcome, client, self._books)
        try:
            ticket.seq = taking.accept(_row(arrival, ticket), message.mid)
        except BaseException:
            self._admission.release(client)
            raise
        return ticket

    def _parsed(self, kind: Kind, message: Message) -> Request | EdgeRuntimeError:
        if message.size > len(message.payload):
            limit = self._parser.settings.limits.payload_bytes
            return EdgeRuntimeError(f"payload of {message.size:,} bytes; at most {limit:,} are taken", "too_large")
        try:
            return self._parser.parse(kind, message.payload)
        except EdgeRuntimeError as error:
            return error
        except Exception:
            log.exception("a message on %s could not be parsed", kind)
            return EdgeRuntimeError(FAILED, "internal")


def client_of(response_topic: str | None, request_id: str | None) -> str:
    """Who asks, as well as it can be known: MQTT does not tell a receiver who sent a message.

    It is the Response Topic; else what stands before the last `/` of an id such as `panel-3/17`; else all who ask are
    one client. That is fairness among the well-meaning; against others a broker has access lists.
    """
    if response_topic is not None:
        return f"topic {response_topic}"
    prefix, slash, _ = (request_id or "").rpartition("/")
    return f"id {prefix}" if slash else ""


def refusal_of(arrival: Arrival, body: dict[str, Any]) -> Answer:
    """The answer that refuses a message, not stored yet."""
    text = json.dumps(body, ensure_ascii=False)
    return Answer(None, arrival.id, arrival.reply.topic, arrival.reply.correlation, text, time.time())


def _readable(correlation: bytes | None) -> str | None:
    """Correlation Data as an id, if it can be read."""
    if not correlation or len(correlation) > ID_LENGTH or not correlation.isascii():
        return None
    text = correlation.decode()
    return text if text.isprintable() else None


def _ticket(arrival: Arrival, request: Request, client: str, books: Books) -> Ticket:
    now = time.monotonic()
    limits = [seconds for seconds in (request.deadline_s, arrival.message.expiry_s) if seconds is not None]
    return Ticket(
        seq=0,
        id=arrival.id,
        kind=arrival.kind,
        client=client,
        reply=arrival.reply,
        books=books,
        rank=VOICE if request.spoken else TEXT,
        priority=request.priority,
        deadline=now + min(limits) if limits else None,
        received=now,
    )


def _row(arrival: Arrival, ticket: Ticket) -> NewRequest:
    return NewRequest(
        key=arrival.key,
        id=arrival.id,
        kind=arrival.kind,
        client=ticket.client,
        topic=arrival.reply.topic,
        correlation=arrival.reply.correlation,
        rank=ticket.rank,
        priority=ticket.priority,
        deadline_s=None if ticket.deadline is None else ticket.deadline - ticket.received,
        deadline=ticket.deadline,
        payload=arrival.message.payload,
    )
