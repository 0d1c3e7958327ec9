"""A thread with an event loop of its own: how a server lives in the daemon, whose other parts are plain threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class LoopThread:
    """Base of the servers."""

    def __init__(self, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._up, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name=name, daemon=True)

    def start(self) -> None:
        """Returns when it serves."""
        self._thread.start()
        self._up.wait()

    def open(self) -> None:
        """The daemon runs: what is asked from now on is answered."""
        self.start()

    def stop(self) -> None:
        """Begins to end."""
        if self._thread.is_alive():
            self.call(self._stop.set)

    def call(self, back: Callable[[], None]) -> None:
        """Has something called in the loop, soon; from any thread."""
        with contextlib.suppress(RuntimeError):  # it has just ended
            self._loop.call_soon_threadsafe(back)

    def join(self, timeout_s: float) -> None:
        """Waits for the end."""
        self._thread.join(timeout_s)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._serve()
        finally:
            self._up.set()

    async def _serve(self) -> None:
        """Begins to serve, sets `_up`, waits for `_stop`, ends."""
        raise NotImplementedError
