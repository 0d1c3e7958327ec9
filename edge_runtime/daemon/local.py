"""Requests from inside this process: of HTTP clients, microphones and cameras.

They wait in the same room as what comes over MQTT, by the same rules. Nothing of them is stored: whoever asks is gone
when the daemon is.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

from edge_runtime.daemon.admission import Ticket
from edge_runtime.daemon.requests import Reply
from edge_runtime.daemon.worker import STOPPED, error_body
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.daemon.admission import Admission
    from edge_runtime.daemon.requests import Parser, Request

log = logging.getLogger(__name__)

STOPPING = "the daemon is stopping"
# Nobody answers on MQTT.
NOWHERE = Reply("")


class Busy(EdgeRuntimeError):  # noqa: N818 - as the code says
    """There is no place for a request.

    Attributes:
        retry_after_s: When to try again, in seconds.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message, "busy")
        self.retry_after_s = retry_after_s


class LocalHandle:
    """A request that was taken.

    Attributes:
        id: Its id, under which MQTT can cancel it, too.
    """

    def __init__(self, admission: Admission, ticket: Ticket) -> None:
        self.id = ticket.id
        self._admission = admission
        self._ticket = ticket

    def cancel(self) -> None:
        """Nobody wants the answer any more. Its end comes all the same, soon; does nothing after it."""
        for ticket in self._admission.withdraw(lambda ticket: ticket is self._ticket):
            ticket.books.finish(ticket, error_body(ticket.id, STOPPED["cancelled"], "cancelled"))


class LocalRequests:
    """Takes requests from any thread.

    Example:
        handle = local.submit(request, client="panel", rank=TEXT, on_delta=None, on_final=print)
    """

    def __init__(self, admission: Admission, parser: Parser) -> None:
        """Args: the waiting room; whose limits hold."""
        self._admission = admission
        self._most_images = parser.settings.limits.images

    def submit(
        self,
        request: Request,
        *,
        client: str,
        rank: int,
        on_delta: Callable[[str], None] | None,
        on_final: Callable[[dict[str, Any]], None],
        on_part: Callable[[dict[str, Any]], None] | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
    ) -> LocalHandle:
        """Lets a request wait for its turn.

        Args:
            request: Media may be bytes of files, or already decoded: pictures of Pillow, samples.
            client: Whose it is; each has its places and its own sessions.
            rank: `admission.VOICE`, `TEXT` or `WATCHING`.
            on_delta: Hears each piece of the answer, if the request streams.
            on_final: Hears the one final answer, as `answer` carries it; that of an error, too. Both are called in a
                thread of the daemon's, before or after this returns, and must return at once.
            on_part: Takes `on_delta`'s place for those who want what goes with the text, too:
                `{"seq", "text", "thought", "logprobs"}`, the last two where they were asked for and there are any.
            priority: Higher runs sooner.
            deadline_s: Seconds after which nobody wants the answer.

        Raises:
            Busy: There is no place.
            EdgeRuntimeError: More images than are allowed.
        """
        images = sum(_images(message) for message in request.messages)
        if images > self._most_images:
            raise EdgeRuntimeError(f"images: {images}; at most {self._most_images} are taken", "too_large")
        if problem := self._admission.reserve(client):
            self._admission.on_refusal(request.kind, request.id or "", "busy")
            raise Busy(problem, self._admission.retry_after_s())
        now = time.monotonic()
        ticket = Ticket(
            seq=0,
            id=request.id or uuid.uuid4().hex,
            kind=request.kind,
            client=client,
            reply=NOWHERE,
            books=_Asked(request, on_part or _texts(on_delta), on_final, self._admission),
            rank=rank,
            priority=priority,
            deadline=None if deadline_s is None else now + deadline_s,
            received=now,
        )
        self._admission.enter(ticket)
        return LocalHandle(self._admission, ticket)

    def close(self) -> None:
        """The waiting room is closed: whoever waits hears that."""
        for ticket in self._admission.take_out(lambda ticket: isinstance(ticket.books, _Asked)):
            ticket.books.hand_back(ticket)


class _Asked:
    """The books of one request: what was asked, and who hears the answer."""

    def __init__(
        self,
        request: Request,
        on_part: Callable[[dict[str, Any]], None] | None,
        on_final: Callable[[dict[str, Any]], None],
        admission: Admission,
    ) -> None:
        self._request, self._on_part, self._on_final, self._admission = request, on_part, on_final, admission

    def begin(self, _: Ticket) -> Request:
        return self._request

    def finish(self, ticket: Ticket, body: dict[str, Any]) -> None:
        self._admission.on_final(ticket, body)
        try:
            self._on_final(body)
        except Exception:  # the answer was given: it is not for the worker to give another
            log.exception("the answer to %s was not taken", ticket.id)

    def hand_back(self, ticket: Ticket) -> None:
        self.finish(ticket, error_body(ticket.id, STOPPING, "busy", retry_after_s=self._admission.retry_after_s()))

    def delta(self, _: Ticket, body: dict[str, Any]) -> None:
        if self._on_part is not None:
            self._on_part(body)


def _texts(on_delta: Callable[[str], None] | None) -> Callable[[dict[str, Any]], None] | None:
    return None if on_delta is None else lambda body: on_delta(body["text"]) if body["text"] else None


def _images(message: dict[str, Any]) -> int:
    content = message["content"]
    return 0 if isinstance(content, str) else sum(item["type"] == "image" for item in content)
