"""Answers that take a while: sent as they grow, withdrawn when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from edge_runtime.daemon.http.problems import SERVER, Problem
from edge_runtime.daemon.worker import FAILED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from starlette.requests import Request

log = logging.getLogger(__name__)

# Before a stream begins, an error can still be told by its status: so long we wait for it.
PATIENCE_S = 10.0
# When nothing comes for so long, a comment keeps proxies from hanging up, and shows us who has.
COMMENT_S = 15.0
COMMENT = ": waiting\n\n"

_END = object()


async def until_gone(request: Request) -> None:
    """Returns when the client has hung up. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def while_there(request: Request, work: Awaitable[Any]) -> Any:
    """What `work` gives.

    Raises:
        Problem: The client hung up before; the work was given up.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Problem(499, "the client is gone")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def stream(request: Request, events: AsyncIterator[str]) -> StreamingResponse:
    """Streams server-sent events.

    Raises:
        Problem: It came before the first event, so that its status can be told.
    """
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=16)
    pump = asyncio.create_task(_pump(events, queue))
    try:
        first = await while_there(request, _first(queue))
    except BaseException:
        await _stopped(pump)
        raise
    if isinstance(first, Problem):
        await _stopped(pump)
        raise first
    return StreamingResponse(_sent(first, queue, pump), media_type="text/event-stream")


async def _first(queue: asyncio.Queue[Any]) -> Any:
    try:
        return await asyncio.wait_for(queue.get(), PATIENCE_S)
    except TimeoutError:
        return COMMENT


async def _pump(events: AsyncIterator[str], queue: asyncio.Queue[Any]) -> None:
    """Moves events into the queue, so that waiting for one can be given up without giving up the work."""
    try:
        async for item in events:
            await queue.put(item)
    except Problem as problem:
        await queue.put(problem)
    except Exception:
        log.exception("an answer could not be given")
        await queue.put(Problem(500, FAILED, kind=SERVER, code="internal"))
    await queue.put(_END)


async def _sent(first: Any, queue: asyncio.Queue[Any], pump: asyncio.Task[None]) -> AsyncIterator[str]:
    item = first
    try:
        while item is not _END:
            yield event(item.body) if isinstance(item, Problem) else item
            try:
                item = await asyncio.wait_for(queue.get(), COMMENT_S)
            except TimeoutError:
                item = COMMENT
    finally:
        await _stopped(pump)


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
