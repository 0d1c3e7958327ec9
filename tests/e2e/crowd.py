"""Many MQTT clients, each with a connection and a Response Topic of its own, that keep every answer they hear."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import soundfile
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.cli._broker import child, find_mosquitto

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path


class Crowd:
    """Clients that ask and listen; a context manager.

    Attributes:
        sent: Ids of all requests, in order.
        finals: For each id the final answers heard, as they came.
    """

    def __init__(self, port: int, size: int, name: str = "crowd") -> None:
        self.sent: list[str] = []
        self.finals: dict[str, list[bytes]] = defaultdict(list)
        self._changed = threading.Condition()
        self._clients = [self._client(port, f"{name}-{number}") for number in range(size)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _answers, client in self._clients:
            client.disconnect()
            client.loop_stop()

    def ask(self, topic: str, body: dict[str, Any] | bytes, name: str, client: int = 0, **properties: Any) -> None:
        """Sends a request; its answer is known by its Correlation Data, which is `name`."""
        answers, sender = self._clients[client % len(self._clients)]
        told = Properties(PacketTypes.PUBLISH)
        told.ResponseTopic = answers
        told.CorrelationData = name.encode()
        for key, value in properties.items():
            setattr(told, key, value)
        with self._changed:
            self.sent.append(name)
        payload = body if isinstance(body, bytes) else json.dumps({"id": name, **body})
        sender.publish(topic, payload, qos=1, properties=told)

    def say(self, topic: str, payload: bytes) -> None:
        """Sends what has no answer."""
        self._clients[0][1].publish(topic, payload, qos=1)

    def wait(self, wanted: int | None = None, timeout_s: float = 240.0) -> None:
        """Waits until all that was sent has been answered, or all but so many."""
        wanted = len(self.sent) if wanted is None else wanted
        with self._changed:
            done = self._changed.wait_for(lambda: len(self.finals) >= wanted, timeout_s)
            missing = [name for name in self.sent if name not in self.finals]
        assert done, f"{len(missing)} of {len(self.sent)} without an answer: {missing[:5]}"

    def outstanding(self) -> int:
        """How many requests have not been answered yet."""
        with self._changed:
            return len(self.sent) - len(self.finals)

    def wait_outstanding(self, most: int, timeout_s: float = 240.0) -> None:
        """Waits until no more than so many are not answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.sent) - len(self.finals) <= most, timeout_s)

    def codes(self) -> dict[str, int]:
        """How many ids ended with each error code; `ok` for an answer."""
        counts: dict[str, int] = defaultdict(int)
        with self._changed:
            for bodies in self.finals.values():
                counts[json.loads(bodies[0]).get("error", {}).get("code", "ok")] += 1
        return dict(counts)

    def repeated(self) -> dict[str, list[bytes]]:
        """Ids whose final answer came more than once."""
        with self._changed:
            return {name: bodies for name, bodies in self.finals.items() if len(bodies) > 1}

    def _client(self, port: int, name: str) -> tuple[str, Client]:
        answers = f"answers/{name}"
        ready = threading.Event()
        client = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5)
        client.max_inflight_messages_set(20)
        client.reconnect_delay_set(1, 1)
        client.on_connect = lambda client, *_: client.subscribe(answers, qos=1)
        client.on_subscribe = lambda *_: ready.set()
        client.on_message = self._arrived
        client.connect("127.0.0.1", port, clean_start=False, properties=_session())
        client.loop_start()
        assert ready.wait(30)
        return answers, client

    def _arrived(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        if message.topic.endswith("/delta"):
            return
        with self._changed:
            self.finals[message.properties.CorrelationData.decode()].append(bytes(message.payload))
            self._changed.notify_all()


def long_recording(seconds: float) -> bytes:
    """A WAV that keeps the model busy for some hundredths of that time, and is small."""
    stream = io.BytesIO()
    samples = 0.1 * np.sin(np.arange(int(8000 * seconds)) / 5)
    soundfile.write(stream, samples, 8000, format="WAV", subtype="PCM_U8")
    return stream.getvalue()


def _session() -> Properties:
    told = Properties(PacketTypes.CONNECT)
    told.SessionExpiryInterval = 600
    return told


def measured(what: str, seconds: float) -> None:
    """Prints a figure for docs/reliability.md; pytest shows it with -rP."""
    print(f"measured: {what}: {seconds:.1f} s")


def since(started: float) -> float:
    """Seconds since `started`."""
    return time.monotonic() - started


@contextlib.contextmanager
def mosquitto_with(folder: Path, port: int, *lines: str) -> Iterator[subprocess.Popen[bytes]]:
    """mosquitto with a configuration of its own, ready."""
    config = folder / "mosquitto.conf"
    config.write_text(
        "\n".join([f"listener {port} 127.0.0.1", "user root", *(lines or ["allow_anonymous true"])]) + "\n"
    )
    with child([str(find_mosquitto()), "-c", str(config)], folder / "broker.log") as process:
        wait_port(port)
        yield process


def wait_port(port: int) -> None:
    """Waits until somebody listens there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.01)
    raise AssertionError("no broker")
