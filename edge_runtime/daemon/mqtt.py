"""The line to the broker: topics, connection, last will. Knows nothing of what requests mean.

MQTT v5, or v3.1.1 where the broker will not speak v5. A broker that is away is tried again for ever, at growing
intervals; the session outlives the connection, so that what is published meanwhile with QoS 1 comes late, not never.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from paho.mqtt.client import ConnectFlags, DisconnectFlags, MQTTMessage
    from paho.mqtt.reasoncodes import ReasonCode

    from edge_runtime.settings import MqttSettings

log = logging.getLogger(__name__)

QOS = 1
KEEPALIVE_S = 30
BACKOFF_S = (1, 30)
# How long a broker keeps what arrives for us while we are away.
SESSION_EXPIRY_S = 3600
# How a broker that never answered yet says that it does not speak our version of MQTT, beside saying so: it hangs up
# this often, or is silent this long (amqtt, which cannot read a v5 will). Doubled at each turn: it may just be slow.
EARLY_CLOSES = 2
SILENCE_S = 2.0
# A broker may send a packet this many times the payload limit, to be told `too_large`; it keeps back what is larger.
PACKET_HEADROOM = 4
LARGEST_PACKET = 268_435_455

RequestTopic = Literal["ask", "transcribe", "describe", "cancel"]
# What the daemon listens to, by the topic's last level.
REQUEST_TOPICS: tuple[RequestTopic, ...] = get_args(RequestTopic)
ONLINE, OFFLINE = "online", "offline"


@dataclass(frozen=True, slots=True)
class Topics:
    """Every topic of one daemon."""

    prefix: str
    device: str

    def __call__(self, name: str) -> str:
        """The full topic: `answer` -> `edge-runtime/<device>/answer`."""
        return f"{self.prefix}/{self.device}/{name}"


@dataclass(frozen=True, slots=True)
class Message:
    """What arrived."""

    name: RequestTopic
    """The topic's last level."""
    payload: bytes
    response_topic: str | None
    correlation: bytes | None
    expiry_s: float | None
    repeated: bool
    """Whether the broker says that it may have sent this before."""


class Link:
    """The connection, kept up by a thread of its own."""

    def __init__(
        self, settings: MqttSettings, info: dict[str, Any], payload_bytes: int, on_message: Callable[[Message], None]
    ) -> None:
        """Prepares; `info` is what the retained topic of that name says.

        Raises:
            EdgeRuntimeError: The password or the CA file cannot be read.
        """
        self.topics = Topics(settings.prefix, settings.device)
        self._settings = settings
        self._info = info
        self._max_packet = min(PACKET_HEADROOM * payload_bytes, LARGEST_PACKET)
        self._on_message = on_message
        self._password = _first_line(settings.password_file) if settings.password_file else None
        self._client = self._new_client(MQTTProtocolVersion.MQTTv5)
        self._other_version = threading.Event()
        self._online = threading.Event()
        self._stopping = threading.Event()
        self._answered = False
        self._early_closes = 0
        self._asked_at: float | None = None
        self._said = ""
        self._thread = threading.Thread(target=self._keep_up, name="mqtt", daemon=True)

    def start(self) -> None:
        """Begins to connect; returns at once."""
        self._thread.start()

    def wait_online(self, timeout_s: float) -> bool:
        """Waits until the broker has our subscriptions and `online`."""
        return self._online.wait(timeout_s)

    def publish(self, topic: str, body: dict[str, Any], correlation: bytes | None = None) -> None:
        """Sends JSON with QoS 1; while the broker is away, it waits in memory."""
        properties = None
        if self._client.protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ContentType = "application/json"
            if correlation is not None:
                properties.CorrelationData = correlation
        self._client.publish(topic, json.dumps(body, ensure_ascii=False), QOS, properties=properties)

    def stop(self, timeout_s: float) -> None:
        """Says `offline`, waits until the broker has everything, and hangs up; gives up after `timeout_s`."""
        self._stopping.set()
        if self._client.is_connected():
            farewell = self._client.publish(self.topics("status"), OFFLINE, QOS, retain=True)
            with contextlib.suppress(RuntimeError, ValueError):  # the broker went just now: its last will speaks
                farewell.wait_for_publish(timeout_s)
        self._other_version.set()
        self._thread.join(timeout_s)

    def _keep_up(self) -> None:
        """Connects with one version of MQTT, and with the other when the broker wants that."""
        for turn, version in enumerate(itertools.cycle((MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311))):
            client = self._client = self._new_client(version)
            self._early_closes = 0
            self._asked_at = None
            arguments: dict[str, Any] = {}
            if version == MQTTProtocolVersion.MQTTv5:
                properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
                properties.SessionExpiryInterval = SESSION_EXPIRY_S
                properties.MaximumPacketSize = self._max_packet
                arguments = {"clean_start": False, "properties": properties}
            client.connect_async(self._settings.host, self._settings.port, KEEPALIVE_S, **arguments)
            client.loop_start()
            pause = min(2**turn, BACKOFF_S[1])
            while not self._other_version.wait(0.2) and not self._silent_for(SILENCE_S * pause):
                pass
            self._other_version.clear()
            client.disconnect()
            client.loop_stop()
            if self._stopping.wait(pause if turn else 0):
                return

    def _silent_for(self, seconds: float) -> bool:
        """Whether a broker that never answered yet was asked longer ago than that."""
        return self._asked_at is not None and time.monotonic() - self._asked_at > seconds

    def _new_client(self, version: MQTTProtocolVersion) -> Client:
        settings = self._settings
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"{settings.prefix}-{settings.device}".replace("/", "-"),
            clean_session=False if version == MQTTProtocolVersion.MQTTv311 else None,
            protocol=version,
        )
        if settings.username is not None:
            client.username_pw_set(settings.username, self._password)
        if settings.tls_ca is not None:
            try:
                client.tls_set(ca_certs=str(settings.tls_ca))
            except OSError as error:
                raise EdgeRuntimeError(f"mqtt.tls_ca {settings.tls_ca}: {error.strerror or error}") from None
        client.reconnect_delay_set(*BACKOFF_S)
        client.will_set(self.topics("status"), OFFLINE, QOS, retain=True)
        client.on_socket_open = self._opened
        client.on_connect = self._connected
        client.on_connect_fail = self._unreachable
        client.on_disconnect = self._disconnected
        client.on_subscribe = self._subscribed
        client.on_message = self._arrived
        return client

    def _opened(self, client: Client, *_: object) -> None:
        if client is self._client and not self._answered:
            self._asked_at = time.monotonic()

    def _connected(
        self, client: Client, _data: object, _flags: ConnectFlags, reason: ReasonCode, _props: object
    ) -> None:
        self._asked_at = None
        if not reason.is_failure:
            self._answered = True
            self._say(logging.INFO, f"connected to {self._where} with MQTT {_VERSION_NAMES[client.protocol]}")
            client.subscribe([(self.topics(name), QOS) for name in REQUEST_TOPICS])
        elif "protocol version" in str(reason).lower():
            self._other_version.set()
        else:
            self._answered = True
            self._say(logging.WARNING, f"{self._where} refuses the connection: {str(reason).lower()}; trying again")

    def _subscribed(self, client: Client, *_: object) -> None:
        # Only now: whoever sees `online` may ask at once.
        client.publish(self.topics("info"), json.dumps(self._info), QOS, retain=True)
        client.publish(self.topics("status"), ONLINE, QOS, retain=True)
        self._online.set()

    def _unreachable(self, _client: Client, _data: object) -> None:
        self._say(logging.WARNING, f"{self._where} cannot be reached; trying again")

    def _disconnected(
        self, client: Client, _data: object, _flags: DisconnectFlags, reason: ReasonCode, _props: object
    ) -> None:
        if self._stopping.is_set() or client is not self._client:
            return
        self._asked_at = None
        if self._online.is_set():
            self._online.clear()
            self._say(logging.WARNING, f"{self._where} is gone ({str(reason).lower()}); trying again")
        elif not self._answered:
            self._early_closes += 1
            if self._early_closes >= EARLY_CLOSES:
                self._other_version.set()

    def _arrived(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        properties = message.properties
        expiry = getattr(properties, "MessageExpiryInterval", None)
        try:
            self._on_message(
                Message(
                    name=cast("RequestTopic", message.topic.rpartition("/")[2]),
                    payload=bytes(message.payload),
                    response_topic=getattr(properties, "ResponseTopic", None),
                    correlation=getattr(properties, "CorrelationData", None),
                    expiry_s=None if expiry is None else float(expiry),
                    repeated=message.dup,
                )
            )
        except Exception:
            # paho's thread must live: it holds the connection.
            log.exception("a message on %s could not be handled", message.topic)

    @property
    def _where(self) -> str:
        return f"the broker at {self._settings.host}:{self._settings.port}"

    def _say(self, level: int, text: str) -> None:
        """Logs what is new: a broker that is away for a day fills one line, not ten thousand."""
        if text != self._said:
            self._said = text
            log.log(level, "%s", text)


_VERSION_NAMES = {MQTTProtocolVersion.MQTTv5: "v5", MQTTProtocolVersion.MQTTv311: "v3.1.1"}


def _first_line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeRuntimeError(f"mqtt.password_file {file}: {getattr(error, 'strerror', None) or error}") from None
