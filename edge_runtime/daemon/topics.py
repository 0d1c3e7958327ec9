"""The names of a daemon's topics: its own, and those of the stream that it shares with other boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from edge_runtime.settings import MqttSettings

RequestTopic = Literal["ask", "transcribe", "describe", "cancel"]
# What the daemon listens to, by the topic's last level.
REQUEST_TOPICS: tuple[RequestTopic, ...] = get_args(RequestTopic)
_LONGEST = 65_535


@dataclass(frozen=True, slots=True)
class Topics:
    """Every topic of one daemon.

    Attributes:
        prefix: First level or levels.
        device: This box.
        group: The stream of requests that it shares with other boxes; None: none.
    """

    prefix: str
    device: str
    group: str | None = None

    @classmethod
    def of(cls, settings: MqttSettings) -> Topics:
        """Those that the settings say."""
        return cls(settings.prefix, settings.device, settings.share_group)

    def __call__(self, name: str) -> str:
        """A topic of this box: `answer` -> `edge-runtime/<device>/answer`."""
        return f"{self.prefix}/{self.device}/{name}"

    def shared(self, name: str) -> str:
        """A topic of the group: `ask` -> `edge-runtime/<group>/ask`."""
        return f"{self.prefix}/{self.group}/{name}"

    def filters(self) -> list[str]:
        """What to subscribe to. Of the group's requests each goes to one box, its cancellations to all."""
        own = [self(name) for name in REQUEST_TOPICS]
        return own if self.group is None else [*own, self.shared("cancel"), *self.share_filters()]

    def share_filters(self) -> list[str]:
        """Those of the filters that are shared subscriptions."""
        if self.group is None:
            return []
        return [f"$share/{self.group}/{self.shared(name)}" for name in REQUEST_TOPICS if name != "cancel"]

    def request(self, topic: str) -> tuple[RequestTopic, str] | None:
        """What a topic asks for, and where its answers go by default; None: it is none of ours."""
        for name in REQUEST_TOPICS:
            if topic == self(name):
                return name, self("answer")
            if self.group is not None and topic == self.shared(name):
                return name, self.shared("answer")
        return None

    def problem(self, response_topic: str) -> str | None:
        """Why answers cannot go to that Response Topic; None: they can."""
        if not response_topic or len(response_topic.encode()) > _LONGEST or "\0" in response_topic:
            return "no topic name"
        if "+" in response_topic or "#" in response_topic:
            return "wildcards are not for publishing"
        if response_topic.startswith("$"):
            return "topics that begin with $ are the broker's"
        own = {self("status"), self("info")}
        return "it has another use" if response_topic in own or self.request(response_topic) else None
