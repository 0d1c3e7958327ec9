"""One connection: how long a client may take over the head of a request, and who leaves when too many have come.

uvicorn waits for ever for the head of a first request and for a client that takes no answer, and refuses newcomers when
it is full: then whoever opens connections and says nothing keeps everybody out. Here the longest idle connection
leaves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

if TYPE_CHECKING:
    import h11

    from edge_runtime.settings import HttpSettings

# What a closing connection has to send what it still holds.
LINGER_S = 5


class Room:
    """The connections on which no request runs, the longest idle first."""

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self._idle: dict[Connection, None] = {}

    def enter(self, newcomer: Connection, present: int) -> None:
        """Lets in a connection, one of `present`."""
        if present > self.settings.connections:
            victim = next(iter(self._idle), newcomer)
            self.leave(victim)
            victim.transport.abort()

    def leave(self, connection: Connection) -> None:
        """It is not idle any more, or not there."""
        self._idle.pop(connection, None)

    def rest(self, connection: Connection) -> None:
        """It is idle again, if it was not before."""
        self._idle.setdefault(connection)


class RoomConfig(Config):
    """uvicorn's configuration, with the room that its connections share."""

    def __init__(self, app: Any, room: Room, **more: Any) -> None:
        super().__init__(app, **more)
        self.room = room


class _Impatient(asyncio.Protocol):
    """Gives up a client that does not take what is sent."""

    transport: asyncio.Transport
    config: RoomConfig
    _stuck: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """The client is behind."""
        super().pause_writing()
        if self._stuck is None:
            self._stuck = asyncio.get_running_loop().call_later(self.config.room.settings.body_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up, or is gone."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None


class WebSocketConnection(_Impatient, WSProtocol):  # type: ignore[misc]  # both call it `transport` and `config`
    """A WebSocket with a limit on waiting; uvicorn pings those who say nothing."""


class Connection(_Impatient, H11Protocol):  # type: ignore[misc]
    """HTTP/1.1 with a limit on waiting."""

    def __init__(self, config: RoomConfig, *arguments: Any, **more: Any) -> None:
        super().__init__(config, *arguments, **more)
        self._room = config.room
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._room.enter(self, len(self.connections))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._busy()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what comes; a head that trickles in does not begin the wait anew."""
        super().data_received(data)
        self._watch()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hands the connection to the WebSocket's own protocol."""
        self._busy()
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        """Waits for the next request."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        upgraded = self.transport.get_protocol() is not self
        if self.transport.is_closing() or upgraded or not (self.cycle is None or self.cycle.response_complete):
            self._busy()
        elif self._timer is None:
            self._room.rest(self)
            self._timer = self.loop.call_later(self._room.settings.header_s, self._expire)

    def _busy(self) -> None:
        """Nobody waits for a head now."""
        self._room.leave(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self.transport.close()
        self.loop.call_later(LINGER_S, self.transport.abort)
