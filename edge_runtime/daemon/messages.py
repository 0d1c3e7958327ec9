"""What passes over the line: messages that arrive, parcels that go out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edge_runtime.daemon.topics import RequestTopic


@dataclass(frozen=True, slots=True)
class Message:
    """What arrived."""

    name: RequestTopic
    """The topic's last level."""
    payload: bytes
    response_topic: str | None
    correlation: bytes | None
    expiry_s: float | None
    answer_topic: str
    """Where the answer goes if there is no response topic."""
    repeated: bool = False
    """Whether the broker says that it may have sent this before."""
    mid: int = 0
    """Packet identifier; 0 where nothing is to be acknowledged."""
    connection: int = 0
    """Of which connection."""
    size: int = 0
    """Bytes of the payload as it came; what is too large is not kept."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes out."""

    topic: str
    payload: str
    correlation: bytes | None = None
    token: object = None
    """What `Listener.delivered` will be told; None: nobody wants to know."""
    retain: bool = False
    until: float | None = None
    """`time.monotonic()` after which it is old news and not sent any more."""


class Listener(Protocol):
    """Who hears of what happens on the line, in its thread: must return soon and not raise."""

    def arrived(self, message: Message) -> None:
        """A message came. Whoever has stored it calls `Link.acknowledge`."""

    def delivered(self, token: object, problem: str | None) -> None:
        """The broker has a parcel; or it says that it will not take it."""
