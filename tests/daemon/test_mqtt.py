"""The line to the broker: what arrives, what is acknowledged, what goes out."""

from __future__ import annotations

import json
import socket
import time

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.daemon import mqtt
from edge_runtime.daemon.topics import Topics
from tests.conftest import MqttClient
from tests.daemon.lines import WAIT_S, link_to, mosquitto_with, persistent


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(mqtt, "BACKOFF_S", (0.05, 0.2))
    monkeypatch.setattr(mqtt, "SILENCE_S", 0.5)


def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(mosquitto, mqtt_client):
    with link_to(mosquitto.port) as link:
        assert link.wait_online(WAIT_S)
        for name in ("kept", "lost"):
            mqtt_client.publish("edge-runtime/box/ask", name, ResponseTopic="r", MessageExpiryInterval=100)
        kept, lost = link.ears.wait_messages(2)
        assert (kept.response_topic, kept.expiry_s, kept.repeated, kept.size) == ("r", 100.0, False, 4)
        link.acknowledge(kept)
        time.sleep(0.3)
        link._client.socket().shutdown(socket.SHUT_RDWR)
        again = link.ears.wait_messages(3)[2]
        assert (again.payload, again.repeated, again.mid) == (b"lost", True, lost.mid)
        assert again.connection > lost.connection
        link.acknowledge(lost)  # of another connection: not sent
        time.sleep(0.3)
        link._client.socket().shutdown(socket.SHUT_RDWR)
        assert link.ears.wait_messages(4)[3].payload == b"lost"
        link.acknowledge(link.ears.messages[3])


def test_receive_maximum_bounds_what_is_not_stored_yet(mosquitto, mqtt_client):
    with link_to(mosquitto.port, receive_maximum=3) as link:
        assert link.wait_online(WAIT_S)
        for number in range(6):
            mqtt_client.publish("edge-runtime/box/ask", str(number))
        link.ears.wait_messages(3)
        time.sleep(0.3)
        assert len(link.ears.messages) == 3
        link.acknowledge(link.ears.messages[0])
        link.ears.wait_messages(4)
        for message in link.ears.messages[1:4]:
            link.acknowledge(message)
        link.ears.wait_messages(6)


def test_a_large_payload_is_not_kept_and_a_huge_one_does_not_come(mosquitto, mqtt_client):
    with link_to(mosquitto.port, payload_bytes=1000) as link:
        assert link.wait_online(WAIT_S)
        for size in (5000, 1500, 1000):
            mqtt_client.publish("edge-runtime/box/transcribe", bytes(size))
        large, fits = link.ears.wait_messages(2)
        assert (large.payload, large.size) == (b"", 1500)
        assert (len(fits.payload), fits.size) == (1000, 1000)


def test_answers_reach_a_broker_that_was_killed_meanwhile(tmp_path, free_port):
    with mosquitto_with(tmp_path, free_port, *persistent(tmp_path)) as process:
        with link_to(free_port) as link:
            assert link.wait_online(WAIT_S)
            process.kill()
            process.wait()
            link.publish("t", json.dumps({"n": 1}), b"c", token="first")
            with mosquitto_with(tmp_path, free_port, *persistent(tmp_path)):
                client = MqttClient(free_port)
                client.subscribe("t")
                link.ears.wait(lambda: link.ears.deliveries)
                link.publish("t", json.dumps({"n": 2}), token="second")
                link.ears.wait(lambda: len(link.ears.deliveries) == 2)
                client.close()
        assert link.ears.deliveries == [("first", None), ("second", None)]


def test_a_short_break_is_no_news(mosquitto, mqtt_client):
    mqtt_client.subscribe("edge-runtime/box/status")
    with link_to(mosquitto.port, will_delay_s=3) as link:
        mqtt_client.wait("edge-runtime/box/status", lambda m: m.payload == b"online")
        time.sleep(0.3)  # its PUBACK comes, too: else it is sent again
        link._client.socket().shutdown(socket.SHUT_RDWR)
        following = mqtt_client.wait("edge-runtime/box/status")
        assert following.payload == b"online"  # and not offline before it
    assert mqtt_client.wait("edge-runtime/box/status").payload == b"offline"


def test_pieces_of_answers_are_dropped_while_nobody_can_have_them(free_port):
    with link_to(free_port) as link:
        for _ in range(10_000):
            link.publish_delta("t", "{}")
        assert len(link._orders) + len(link._waiting) == 0


def test_what_a_topic_holds_is_published_now_and_at_each_connection(mosquitto, mqtt_client):
    heard: list[bytes] = []
    with link_to(mosquitto.port) as link:  # it may be connected already: what is heard is subscribed to the next time
        assert link.wait_online(WAIT_S)
        link.hear("home/status", heard.append)
        link.retain("edge-runtime/box/door", "open")
        mqtt_client.subscribe("edge-runtime/box/door")
        assert mqtt_client.wait("edge-runtime/box/door").payload == b"open"
        link._client.socket().shutdown(socket.SHUT_RDWR)
        assert mqtt_client.wait("edge-runtime/box/door").payload == b"open"
        deadline = time.monotonic() + WAIT_S
        while not heard and time.monotonic() < deadline:
            mqtt_client.publish("home/status", "online")
            time.sleep(0.05)
        assert heard[0] == b"online"
    assert link.ears.messages == []


def test_old_news_is_not_told(monkeypatch, tmp_path, free_port):
    monkeypatch.setattr(mqtt, "NEWS_S", 0.0)
    with link_to(free_port) as link:
        link.publish_news("edge-runtime/box/event/transcript", '{"text": "old"}')
        monkeypatch.setattr(mqtt, "NEWS_S", 60.0)
        link.publish_news("edge-runtime/box/event/transcript", '{"text": "new"}')
        with mosquitto_with(tmp_path, free_port, "allow_anonymous true"):
            client = MqttClient(free_port)
            client.subscribe("edge-runtime/box/#")
            assert link.wait_online(WAIT_S)
            told = client.wait("edge-runtime/box/event/transcript")
            client.close()
    assert json.loads(told.payload) == {"text": "new"}


def test_strange_messages_are_acknowledged_and_dropped(mosquitto):
    with link_to(mosquitto.port) as link:
        assert link.wait_online(WAIT_S)
        client = Client(CallbackAPIVersion.VERSION2)
        for topic in (b"edge-runtime/box/\xff", b"edge-runtime/box/status"):
            message = MQTTMessage(1, topic)
            message.payload = b"x"
            link._on_message(client, None, message)
        assert link.ears.messages == []


def test_topics():
    own = Topics("site/edge", "box")
    assert own("ask") == "site/edge/box/ask"
    assert own.filters() == [f"site/edge/box/{name}" for name in ("ask", "transcribe", "describe", "cancel")]
    assert own.request("site/edge/box/ask") == ("ask", "site/edge/box/answer")
    assert own.request("site/edge/other/ask") is None
    group = Topics("edge", "box", "pool")
    assert group.filters()[4:] == [
        "edge/pool/cancel",
        "$share/pool/edge/pool/ask",
        "$share/pool/edge/pool/transcribe",
        "$share/pool/edge/pool/describe",
    ]
    assert group.request("edge/pool/describe") == ("describe", "edge/pool/answer")
    assert group.problem("edge/pool/ask")
    assert group.problem("mine/answer") is None
