"""The line to the broker: connection, subscriptions, what goes out and what is acknowledged. Knows nothing of requests.

MQTT v5, or v3.1.1 where the broker will not speak v5. A broker that is away is tried again for ever, at growing
intervals; the session outlives the connection, so that what is published meanwhile with QoS 1 comes late, not never.

One thread owns the connection and everything in it. Others give it orders through a queue: what to publish, and which
message is stored, so that the broker may forget it. An acknowledgement is sent on the connection on which its message
came, or not at all: the broker sends an unacknowledged message again, and only it knows what its numbers mean then.
"""

from __future__ import annotations

import collections
import json
import logging
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_runtime.daemon.client import (
    IN_FLIGHT,
    LARGEST_PACKET,
    OFFLINE,
    ONLINE,
    QOS,
    V5,
    V311,
    VERSION_NAMES,
    connect_arguments,
    make_client,
    properties,
    set_password,
)
from edge_runtime.daemon.messages import Message, Parcel
from edge_runtime.daemon.topics import Topics
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from edge_runtime.daemon.messages import Listener
    from edge_runtime.settings import MqttSettings

log = logging.getLogger(__name__)

# Seconds between two tries, doubled each time; the first again after a connection that held for a while.
BACKOFF_S = (0.5, 5.0)
HELD_S = 10.0
# How a broker that never answered yet says that it does not speak our version of MQTT, beside saying so: it hangs up
# this often, or is silent this long (amqtt, which cannot read a v5 will). Doubled at each turn: it may just be slow.
EARLY_CLOSES = 2
SILENCE_S = 2.0
# How long nothing more is said about answers that a broker does not take.
QUIET_S = 60.0
# News that could not be sent for so long is old, and somebody might act on it: it is dropped.
NEWS_S = 60.0
# Pieces of answers that wait to be sent; more than that are dropped, since the whole answer follows.
MOST_DELTAS = 256
# What a PUBLISH has beside topic and payload, at most: fixed header, packet identifier, properties without user's text.
_OVERHEAD = 64


class Link:
    """The connection, kept up by a thread of its own."""

    def __init__(self, settings: MqttSettings, info: dict[str, Any], payload_bytes: int, listener: Listener) -> None:
        """Prepares; `info` is what the retained topic of that name says.

        Raises:
            EdgeRuntimeError: The password or the CA file cannot be read.
        """
        self.topics = Topics.of(settings)
        self._settings = settings
        self._retained = {self.topics("info"): json.dumps(info)}
        self._stale: set[str] = set()
        self._heard: dict[str, Callable[[bytes], None]] = {}
        self._payload_bytes = payload_bytes
        self._listener = listener
        self._client = self._new_client(V5)
        self._orders: collections.deque[Parcel | Message] = collections.deque()
        self._waiting: collections.deque[Parcel] = collections.deque()
        self._sent: dict[int, Parcel] = {}
        self._window = IN_FLIGHT
        self._largest = LARGEST_PACKET
        self._wake_up, self._wake = socket.socketpair()
        for end in (self._wake_up, self._wake):
            end.setblocking(False)
        self._online = threading.Event()
        self._stop_at: float | None = None
        self._connection = 0
        self._connected = False
        self._answered = False
        self._wrong_version = False
        self._early_closes = 0
        self._farewell: int | None = None
        self._said = self._why = ""
        self._quiet_until = 0.0
        self.beat: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._keep_up, name="mqtt", daemon=True)

    def start(self) -> None:
        """Begins to connect; returns at once."""
        self._thread.start()

    def wait_online(self, timeout_s: float) -> bool:
        """Waits until the broker has our subscriptions and `online`."""
        return self._online.wait(timeout_s)

    def publish(self, topic: str, body: str, correlation: bytes | None = None, token: object = None) -> None:
        """Sends JSON with QoS 1; while the broker is away, it waits in memory. `Listener.delivered` hears the end."""
        self._order(Parcel(topic, body, correlation, token))

    def publish_delta(self, topic: str, body: str, correlation: bytes | None = None) -> None:
        """Sends JSON that may be lost while the broker is away or slow."""
        if self._online.is_set() and len(self._waiting) + len(self._orders) < MOST_DELTAS:
            self._order(Parcel(topic, body, correlation))

    def publish_news(self, topic: str, body: str) -> None:
        """Sends JSON with QoS 1 that is of no use later than a minute from now."""
        self._order(Parcel(topic, body, until=time.monotonic() + NEWS_S))

    def retain(self, topic: str, payload: str) -> None:
        """Sets what a topic holds: published now, or as soon as the broker is there, and again at each connection."""
        self._retained[topic] = payload
        self._stale.add(topic)
        self._nudge()

    def hear(self, topic: str, heard: Callable[[bytes], None]) -> None:
        """Subscribes to one topic more, before `start`; `heard` is called in the line's thread and returns at once."""
        self._heard[topic] = heard

    def acknowledge(self, message: Message) -> None:
        """Lets the broker forget a message."""
        if message.mid:
            self._order(message)

    def stop(self, timeout_s: float) -> None:
        """Waits until the broker has everything, says `offline` and hangs up; gives up after `timeout_s`."""
        self._stop_at = time.monotonic() + timeout_s
        self._nudge()
        if self._thread.is_alive():
            self._thread.join(timeout_s + 1.0)

    @property
    def online(self) -> bool:
        """Whether the broker is there and has our subscriptions."""
        return self._online.is_set()

    @property
    def undelivered(self) -> int:
        """How many parcels the broker has not acknowledged."""
        return len(self._waiting) + len(self._sent)

    def poke(self) -> None:
        """Makes the thread beat, if it waits."""
        self._nudge()

    def _order(self, order: Parcel | Message) -> None:
        self._orders.append(order)
        self._nudge()

    def _nudge(self) -> None:
        try:
            self._wake.send(b"\0")
        except OSError:  # full: it will wake up anyway
            return

    def _keep_up(self) -> None:
        """The thread's body: one connection after the other, with one version of MQTT or the other."""
        pause, turn = BACKOFF_S[0], 0
        while self._stop_at is None:
            began = time.monotonic()
            try:
                self._live(SILENCE_S * 2**turn)
            except Exception:
                # Whatever a broker sent: this thread must live, it holds the connection.
                log.exception("the connection to %s failed", self._where)
            self._lost()
            if self._wrong_version:
                self._wrong_version = False
                turn = min(turn + 1, 4)
                self._change_version()
                if turn == 1:
                    continue
            pause = BACKOFF_S[0] if time.monotonic() - began > HELD_S else min(2 * pause, BACKOFF_S[1])
            self._sleep(pause)

    def _live(self, patience_s: float) -> None:
        """One connection, from connecting to its end. A broker that never answered yet has `patience_s` to do so."""
        client, settings = self._client, self._settings
        self._connection += 1
        try:
            set_password(client, settings)
        except EdgeRuntimeError as error:  # it was there at the start: the one that was read then may still do
            self._say(logging.WARNING, str(error))
        version = MQTTProtocolVersion(client.protocol)
        try:
            client.connect(
                settings.host,
                settings.port,
                settings.keepalive_s,
                **connect_arguments(settings, self._payload_bytes, version),
            )
        except ssl.SSLError as error:
            self._say(logging.WARNING, f"{self._where} cannot be trusted ({error.reason or error}); trying again")
            return
        except (OSError, ValueError):
            self._say(logging.WARNING, f"{self._where} cannot be reached; trying again")
            return
        silent_at = time.monotonic() + patience_s
        while (line := client.socket()) is not None and not self._done(client):
            if self._answered or self._connected:
                wait = settings.keepalive_s / 4
            else:
                wait = silent_at - time.monotonic()
                if wait <= 0:
                    self._wrong_version = True
                    return
            self._step(client, line, wait)
        if not (self._answered or self._connected):
            self._early_closes += 1
            self._wrong_version = self._wrong_version or self._early_closes >= EARLY_CLOSES

    def _step(self, client: Client, line: Any, wait_s: float) -> None:
        """Waits for something to happen and deals with it."""
        if self._stop_at is not None:
            wait_s = min(wait_s, 0.1)
        pending = line.pending() if isinstance(line, ssl.SSLSocket) else 0
        wanted = [line] if client.want_write() else []
        readable, writable, _ = select.select([line, self._wake_up], wanted, [], 0 if pending else wait_s)
        self.beat()
        if self._wake_up in readable:
            self._wake_up.recv(65_536)
        if pending or line in readable:
            client.loop_read()
        self._obey(client)
        if client.socket() is not None and (writable or client.want_write()):
            client.loop_write()
        client.loop_misc()

    def _obey(self, client: Client) -> None:
        """Carries out orders, as far as the line is up and the broker has room."""
        while self._orders:
            order = self._orders.popleft()
            if isinstance(order, Parcel):
                self._waiting.append(order)
            elif order.connection == self._connection and self._connected:
                client.ack(order.mid, QOS)
        while self._stale and self._online.is_set() and len(self._sent) < self._window:
            topic = self._stale.pop()
            self._send(client, Parcel(topic, self._retained[topic], retain=True))
        while self._waiting and self._online.is_set() and len(self._sent) < self._window:
            parcel = self._waiting.popleft()
            if parcel.until is None or time.monotonic() < parcel.until:
                self._send(client, parcel)

    def _send(self, client: Client, parcel: Parcel) -> None:
        if len(parcel.payload.encode()) + len(parcel.topic.encode()) + _OVERHEAD > self._largest:
            self._tell(parcel, f"more than the {self._largest} bytes that the broker takes")
            return
        told = None
        if client.protocol == V5:
            kind = None if parcel.retain else "application/json"
            told = properties(PacketTypes.PUBLISH, ContentType=kind, CorrelationData=parcel.correlation)
        try:
            mid = client.publish(parcel.topic, parcel.payload, QOS, parcel.retain, told).mid
        except ValueError as error:
            self._tell(parcel, str(error))
            return
        self._sent[mid] = parcel

    def _done(self, client: Client) -> bool:
        """When stopping: whether everything has been said. Says goodbye once the rest is delivered, or time is up."""
        if self._stop_at is None:
            return False
        late = time.monotonic() >= self._stop_at
        if (
            self._online.is_set()
            and self._farewell is None
            and (late or not (self._orders or self._waiting or self._sent))
        ):
            for shared in self.topics.share_filters():  # the others of the group shall have what comes now
                client.unsubscribe(shared)
            self._farewell = client.publish(self.topics("status"), OFFLINE, QOS, retain=True).mid
            self._sent[self._farewell] = Parcel(self.topics("status"), OFFLINE, retain=True)
        if late or not self._online.is_set() or (self._farewell is not None and self._farewell not in self._sent):
            client.disconnect()
            return True
        return False

    def _new_client(self, version: MQTTProtocolVersion) -> Client:
        client = make_client(self._settings, self.topics, version)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def _change_version(self) -> None:
        """Speaks the other version from now on. What was on its way is sent again."""
        self._client.disconnect()
        self._client = self._new_client(V311 if self._client.protocol == V5 else V5)
        self._early_closes = 0
        self._waiting.extendleft(reversed(self._sent.values()))
        self._sent.clear()

    def _on_connect(
        self, client: Client, _: object, flags: ConnectFlags, reason: ReasonCode, told: Properties | None
    ) -> None:
        del flags  # whether the broker kept our session makes no difference: all filters are subscribed to again
        self._answered = True
        if reason.is_failure:
            if "protocol version" in str(reason).lower():
                self._answered, self._wrong_version = False, True
            else:
                self._say(logging.WARNING, f"{self._where} refuses the connection: {str(reason).lower()}; trying again")
            return
        self._connected = True
        self._window = min(IN_FLIGHT, getattr(told, "ReceiveMaximum", IN_FLIGHT))
        self._largest = getattr(told, "MaximumPacketSize", LARGEST_PACKET)
        version = MQTTProtocolVersion(client.protocol)
        self._say(logging.INFO, f"connected to {self._where} with MQTT {VERSION_NAMES[version]}")
        filters = [*self.topics.filters(), *self._heard]
        if version == V5:  # what was published as retained is old news, not a request
            options = SubscribeOptions(QOS, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            client.subscribe([(name, options) for name in filters])
        else:
            client.subscribe([(name, QOS) for name in filters])

    def _on_disconnect(self, _: Client, __: object, ___: object, reason: ReasonCode, ____: object) -> None:
        self._why = str(reason).lower()

    def _on_subscribe(self, client: Client, _: object, __: int, reasons: list[ReasonCode], ___: object) -> None:
        refused = [str(reason).lower() for reason in reasons if reason.is_failure]
        if refused:
            self._say(logging.WARNING, f"{self._where} refuses subscriptions: {refused[0]}")
        # Only now: whoever sees `online` may ask at once.
        self._stale.clear()
        for topic, payload in [*self._retained.items(), (self.topics("status"), ONLINE)]:
            mid = client.publish(topic, payload, QOS, retain=True).mid
            self._sent[mid] = Parcel(topic, payload, retain=True)
        self._online.set()

    def _on_publish(self, _: Client, __: object, mid: int, reason: ReasonCode, ___: object) -> None:
        if parcel := self._sent.pop(mid, None):
            self._tell(parcel, str(reason).lower() if reason.is_failure else None)

    def _tell(self, parcel: Parcel, problem: str | None) -> None:
        if problem is not None and time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_S  # each requester may have a topic that is forbidden
            self._say(logging.WARNING, f"{self._where} does not take what is for {parcel.topic}: {problem}")
        if parcel.token is not None:
            self._listener.delivered(parcel.token, problem)

    def _on_message(self, client: Client, _: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic
            meant = self.topics.request(topic)
        except UnicodeDecodeError:
            topic, meant = "", None
        if topic in self._heard and not message.retain:
            self._heard[topic](bytes(message.payload))
        if meant is None or message.retain:
            client.ack(message.mid, message.qos)
            return
        told, size = message.properties, len(message.payload)
        expiry = getattr(told, "MessageExpiryInterval", None)
        self._listener.arrived(
            Message(
                name=meant[0],
                payload=b"" if size > self._payload_bytes else bytes(message.payload),
                response_topic=getattr(told, "ResponseTopic", None),
                correlation=getattr(told, "CorrelationData", None),
                expiry_s=None if expiry is None else float(expiry),
                answer_topic=meant[1],
                repeated=message.dup,
                mid=message.mid if message.qos else 0,
                connection=self._connection,
                size=size,
            )
        )

    def _lost(self) -> None:
        """The connection is over."""
        self._connected = False
        if self._online.is_set():
            self._online.clear()
            if self._stop_at is None:
                self._say(logging.WARNING, f"{self._where} is gone ({self._why}); trying again")

    def _sleep(self, seconds: float) -> None:
        """Sleeps, unless it is time to stop."""
        until = time.monotonic() + seconds
        while self._stop_at is None and (left := until - time.monotonic()) > 0:
            self.beat()
            if select.select([self._wake_up], [], [], left)[0]:
                self._wake_up.recv(65_536)

    @property
    def _where(self) -> str:
        return f"the broker at {self._settings.host}:{self._settings.port}"

    def _say(self, level: int, text: str) -> None:
        """Logs what is new: a broker that is away for a day fills one line, not ten thousand."""
        if text != self._said:
            self._said = text
            log.log(level, "%s", text)
