"""A request in the daemon's queue, seen from the server's event loop."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from edge_runtime.daemon.admission import TEXT, VOICE
from edge_runtime.daemon.http.problems import of_answer, of_code
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from edge_runtime.daemon.local import LocalRequests
    from edge_runtime.daemon.requests import Parser, Request
    from edge_runtime.engine.protocol import Info
    from edge_runtime.settings import Settings


@dataclass(frozen=True, slots=True)
class Backend:
    """What the server works with once the model is there.

    Attributes:
        parser: Whose settings hold; they may change.
        info: What the model is.
        requests: The daemon's queue.
        forget: Drops a conversation, by its client and name.
        created: Unix time since when the model is there.
        live: Whether the model listens while somebody speaks.
    """

    parser: Parser
    info: Info
    requests: LocalRequests
    forget: Callable[[str, str], None]
    created: int
    live: bool = False

    @property
    def settings(self) -> Settings:
        """The settings as they are now."""
        return self.parser.settings

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the model answers to."""
        return (self.info["name"], *self.settings.http.model_names)


class Job:
    """One request, from its place in the queue to its end. Leaving its context withdraws it, if it has not ended.

    Example:
        async with Job(backend, request, client="panel") as job:
            async for piece in job.pieces():
                ...
            answer = job.answer

    Attributes:
        answer: The final answer, once `pieces` is through: `{"id", "text", "finish_reason", ...}`.
    """

    def __init__(self, backend: Backend, request: Request, client: str, rank: int | None = None) -> None:
        """Takes a place in the queue.

        Args:
            backend: Whose queue.
            request: What is asked.
            client: Who asks.
            rank: Among requests of the same priority; None: that of what the request holds.

        Raises:
            Problem: There is none.
        """
        self.answer: dict[str, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        try:
            self._handle = backend.requests.submit(
                request,
                client=client,
                rank=rank if rank is not None else VOICE if request.spoken else TEXT,
                on_delta=None,
                on_part=self._tell,
                on_final=self._tell,
                priority=request.priority,
                deadline_s=request.deadline_s,
            )
        except EdgeRuntimeError as error:
            raise of_code(error.code, str(error), getattr(error, "retry_after_s", None)) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.answer:
            self._handle.cancel()

    def cancel(self) -> None:
        """Asks it to stop; its end comes all the same."""
        self._handle.cancel()

    async def pieces(self) -> AsyncIterator[str]:
        """The pieces of the answer's text; none unless the request streams.

        Raises:
            Problem: It failed.
        """
        async for part in self.parts():
            if part["text"]:
                yield part["text"]

    async def parts(self) -> AsyncIterator[Mapping[str, Any]]:
        """The pieces with all that goes with them, as `LocalRequests.submit` has them.

        Raises:
            Problem: It failed.
        """
        while "seq" in (event := await self._events.get()):
            yield event
        self.answer = dict(event)
        if "error" in event:
            raise of_answer(event["error"])

    async def whole(self) -> dict[str, Any]:
        """The final answer.

        Raises:
            Problem: It failed.
        """
        async for _ in self.pieces():
            pass
        return self.answer

    def _tell(self, event: Mapping[str, Any]) -> None:
        """From the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
