"""What several rooms' tests share: a real broker, and a client on it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.cli._broker import Broker, broker, find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from paho.mqtt.client import MQTTMessage

WAIT_S = 20.0

# Started in the background by a shell, this process and all that it starts would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


class MqttClient:
    """A v5 client that keeps what it hears until somebody waits for it."""

    def __init__(self, port: int) -> None:
        self._heard: list[MQTTMessage] = []
        self._changed = threading.Condition()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_message = self._arrived
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def subscribe(self, topic: str) -> None:
        self._client.subscribe(topic, qos=1)

    def publish(self, topic: str, payload: bytes | str, *, retain: bool = False, **properties: Any) -> None:
        packed = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(packed, name, value)
        self._client.publish(topic, payload, qos=1, retain=retain, properties=packed).wait_for_publish(WAIT_S)

    def wait(
        self, topic: str, wanted: Callable[[MQTTMessage], bool] = lambda _: True, timeout_s: float = WAIT_S
    ) -> MQTTMessage:
        """The oldest message on `topic` that is `wanted` and that nobody waited for yet."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for message in self._heard:
                    if message.topic == topic and wanted(message):
                        self._heard.remove(message)
                        return message
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise AssertionError(f"nothing on {topic}; heard: {[m.topic for m in self._heard]}")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _arrived(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        with self._changed:
            self._heard.append(message)
            self._changed.notify_all()


@pytest.fixture
def mosquitto() -> Iterator[Broker]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with broker() as running:
        yield running


@pytest.fixture
def mqtt_client(mosquitto: Broker) -> Iterator[MqttClient]:
    client = MqttClient(mosquitto.port)
    yield client
    client.close()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
