"""The daemon with a fake model and a real broker."""

from __future__ import annotations

import base64
import json
import threading
import time

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_runtime.daemon.service import Daemon
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import LimitsSettings, MqttSettings, Settings, StorageSettings
from tests.daemon.conftest import FakeModel

BASE = "edge-runtime/box"


class Box:
    """A daemon that runs, and a client on the same broker."""

    def __init__(self, port, model, client, state, **mqtt):
        settings = Settings(
            mqtt=MqttSettings("127.0.0.1", port, "box", **mqtt),
            storage=StorageSettings(state),
            limits=LimitsSettings(queue=2, payload_bytes=100_000),
        )
        self.daemon = Daemon(settings, model, "1.2.3")
        self.thread = threading.Thread(target=self.daemon.run, kwargs={"finish_s": 0.3}, daemon=True)
        self.client = client
        client.subscribe(f"{BASE}/#")
        client.subscribe("mine/#")
        self.thread.start()
        assert client.wait(f"{BASE}/status", lambda message: message.payload == b"online")

    def publish(self, name, body, **properties):
        self.client.publish(f"{BASE}/{name}", body if isinstance(body, bytes) else json.dumps(body), **properties)

    def answer(self, topic=f"{BASE}/answer"):
        return json.loads(self.client.wait(topic).payload)

    def stop(self):
        self.daemon.stop()
        self.thread.join(15)
        assert not self.thread.is_alive()


@pytest.fixture
def box(mosquitto, model, mqtt_client, tmp_path):
    box = Box(mosquitto.port, model, mqtt_client, tmp_path)
    yield box
    model.gate.set()
    box.stop()


def test_info_is_retained_and_says_what_the_box_can(box):
    info = json.loads(box.client.wait(f"{BASE}/info").payload)
    assert info == {
        "version": "1.2.3",
        "model": "fake",
        "modalities": ["text", "image", "audio"],
        "context": 128,
        "queue": 2,
        "limits": {
            "per_client": 8,
            "payload_bytes": 100_000,
            "audio_s": 600.0,
            "images": 8,
            "image_pixels": 16_000_000,
        },
        "microphones": [],
        "cameras": [],
    }


def test_ask_answers_on_answer_with_its_id(box):
    box.publish("ask", {"id": "a1", "prompt": "one two"})
    answer = box.answer()
    assert answer["id"] == "a1"
    assert answer["text"] == "one two "
    assert set(answer) == {"id", "text", "finish_reason", "usage", "timing"}


def test_response_topic_and_correlation_data_win(box):
    box.publish("ask", {"id": "a1", "prompt": "x"}, ResponseTopic="mine/here", CorrelationData=b"\x00\xff")
    message = box.client.wait("mine/here")
    assert message.properties.CorrelationData == b"\x00\xff"
    assert json.loads(message.payload)["id"] == "a1"


def test_stream_sends_numbered_deltas_before_the_answer(box):
    box.publish("ask", {"id": "s", "prompt": "one two", "stream": True})
    deltas = [json.loads(box.client.wait(f"{BASE}/answer/delta").payload) for _ in range(2)]
    assert deltas == [{"id": "s", "seq": 0, "text": "one "}, {"id": "s", "seq": 1, "text": "two "}]
    assert box.answer()["text"] == "one two "


def test_transcribe_and_describe_take_plain_bytes(box, wav, png):
    box.publish("transcribe", wav)
    assert box.answer()["text"] == "hello"
    box.publish("describe", png, ResponseTopic="mine/d", CorrelationData=b"7")
    assert box.answer("mine/d")["id"] == "7"


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("ask", b"{", "bad_request"),
        ("ask", {"id": "x", "prompt": "p", "images": ["?"]}, "bad_request"),
        ("ask", {"id": "x", "prompt": "p", "audio": {"microphone": "m"}}, "bad_request"),
        ("ask", {"id": "x", "prompt": "p", "images": [base64.b64encode(b"text").decode()]}, "unsupported_media"),
        ("transcribe", b"noise", "unsupported_media"),
        ("describe", b"GIF89a", "unsupported_media"),
        ("transcribe", bytes(100_001), "too_large"),
    ],
)
def test_a_bad_request_is_answered_and_the_next_one_works(box, name, body, code):
    box.publish(name, body)
    answer = box.answer()
    assert answer["error"]["code"] == code
    assert answer["error"]["message"]
    if isinstance(body, dict):
        assert answer["id"] == "x"
    box.publish("ask", {"id": "next", "prompt": "p"})
    assert box.answer()["text"] == "p "


def test_a_repeated_id_is_answered_once(box):
    for _ in range(3):
        box.publish("ask", {"id": "same", "prompt": "p"})
    box.publish("ask", {"id": "other", "prompt": "p"})
    assert [box.answer()["id"], box.answer()["id"]] == ["same", "other"]


def test_more_than_the_queue_holds_is_busy(box, model):
    model.gate.clear()
    box.publish("ask", {"id": "running", "prompt": "p"})
    assert model.begun.wait(5)
    for name in ("w1", "w2", "over"):
        box.publish("ask", {"id": name, "prompt": "p"})
    busy = box.answer()
    assert busy["id"] == "over"
    assert busy["error"]["code"] == "busy"
    assert busy["error"]["retry_after_s"] >= 1
    model.gate.set()
    assert [box.answer()["id"] for _ in range(3)] == ["running", "w1", "w2"]


def test_cancel_answers_the_waiting_and_the_running(box, model):
    model.gate.clear()
    for name in ("running", "waiting"):
        box.publish("ask", {"id": name, "prompt": "p"})
    assert model.begun.wait(5)
    for name in ("waiting", "running", "unknown"):
        box.publish("cancel", {"id": name})
        if name != "unknown":
            answer = box.answer()
            assert (answer["id"], answer["error"]["code"]) == (name, "cancelled")


def test_a_request_that_waits_past_its_expiry_is_expired(box, model):
    model.gate.clear()
    box.publish("ask", {"id": "running", "prompt": "p"})
    assert model.begun.wait(5)
    box.publish("ask", {"id": "late", "prompt": "p"}, MessageExpiryInterval=1)
    box.publish("ask", {"id": "later", "prompt": "p", "deadline_s": 0.5})
    time.sleep(1.2)
    model.gate.set()
    answers = {answer["id"]: answer for answer in (box.answer() for _ in range(3))}
    assert answers["running"]["text"] == "p "
    assert answers["late"]["error"]["code"] == "expired"
    assert answers["later"]["error"]["code"] == "expired"


def test_stopping_says_offline_and_what_was_not_done_is_done_after_the_next_start(
    box, model, mosquitto, mqtt_client, tmp_path
):
    model.gate.clear()
    for name in ("running", "waiting"):
        box.publish("ask", {"id": name, "prompt": "p"}, ResponseTopic="mine/x", CorrelationData=name.encode())
    assert model.begun.wait(5)
    started = time.monotonic()
    box.stop()
    assert time.monotonic() - started < 15
    assert box.client.wait(f"{BASE}/status", lambda message: message.payload == b"offline")
    box.publish("ask", {"id": "meanwhile", "prompt": "p"})
    model.gate.set()
    again = Box(mosquitto.port, model, mqtt_client, tmp_path)
    messages = [box.client.wait("mine/x") for _ in range(2)]
    # In no order: what ran when the stop's patience ended may count as an attempt and go last.
    assert sorted((json.loads(m.payload)["id"], m.properties.CorrelationData) for m in messages) == [
        ("running", b"running"),
        ("waiting", b"waiting"),
    ]
    assert box.answer()["id"] == "meanwhile"
    again.stop()


def test_a_session_remembers_and_is_the_requesters_own(box, model):
    for prompt in ("one", "two"):
        box.publish("ask", {"prompt": prompt, "session": "s"})
        box.answer()
    box.publish("ask", {"prompt": "three", "session": "s"}, ResponseTopic="mine/x")
    box.answer("mine/x")
    assert [len(messages) for messages, _ in model.calls] == [1, 3, 1]


def test_deltas_go_below_the_response_topic(box):
    box.publish("ask", {"prompt": "one two", "stream": True}, ResponseTopic="mine/x", CorrelationData=b"7")
    delta = box.client.wait("mine/x/delta")
    assert (json.loads(delta.payload)["seq"], delta.properties.CorrelationData) == (0, b"7")
    assert box.answer("mine/x")["text"] == "one two "


def test_a_retained_request_is_old_news(box, mosquitto, model, mqtt_client, tmp_path):
    box.stop()
    box.publish("ask", {"id": "old", "prompt": "p"}, retain=True)
    again = Box(mosquitto.port, model, mqtt_client, tmp_path)
    box.publish("ask", {"id": "new", "prompt": "p"})
    answered = [box.answer()["id"]]
    if answered == ["old"]:  # it was also published to our session; never a second time from the broker's memory
        answered.append(box.answer()["id"])
    assert answered[-1] == "new"
    again.stop()
    for _ in range(2):
        again = Box(mosquitto.port, model, mqtt_client, tmp_path)
        again.stop()
    with pytest.raises(AssertionError):
        box.client.wait(f"{BASE}/answer", timeout_s=0.3)


def test_two_boxes_share_one_stream(mosquitto, mqtt_client, tmp_path):
    models, boxes = [], []
    for name in ("left", "right"):
        models.append(FakeModel())
        settings = Settings(
            mqtt=MqttSettings("127.0.0.1", mosquitto.port, name, share_group="pool"), storage=StorageSettings(tmp_path)
        )
        daemon = Daemon(settings, models[-1], "1")
        thread = threading.Thread(target=daemon.run, kwargs={"finish_s": 0.3}, daemon=True)
        thread.start()
        boxes.append((daemon, thread))
        mqtt_client.subscribe(f"edge-runtime/{name}/#")
        assert mqtt_client.wait(f"edge-runtime/{name}/status", lambda message: message.payload == b"online")
    mqtt_client.subscribe("edge-runtime/pool/answer")
    for number in range(6):
        mqtt_client.publish("edge-runtime/pool/ask", json.dumps({"id": str(number), "prompt": "p"}))
    heard = [json.loads(mqtt_client.wait("edge-runtime/pool/answer").payload)["id"] for _ in range(6)]
    assert sorted(heard) == list("012345")
    assert all(model.calls for model in models)
    for model in models:  # a cancellation reaches the box that has the request
        model.gate.clear()
    for number in range(2):
        mqtt_client.publish("edge-runtime/pool/ask", json.dumps({"id": f"c{number}", "prompt": "p"}))
        mqtt_client.publish("edge-runtime/pool/cancel", json.dumps({"id": f"c{number}"}))
    codes = [json.loads(mqtt_client.wait("edge-runtime/pool/answer").payload)["error"]["code"] for _ in range(2)]
    assert codes == ["cancelled", "cancelled"]
    boxes[0][0].stop()
    boxes[0][1].join(20)
    models[1].gate.set()
    for number in range(4):  # who has gone with a goodbye gets nothing more
        mqtt_client.publish("edge-runtime/pool/ask", json.dumps({"id": f"d{number}", "prompt": "p"}))
    heard = [json.loads(mqtt_client.wait("edge-runtime/pool/answer").payload)["id"] for _ in range(4)]
    assert sorted(heard) == ["d0", "d1", "d2", "d3"]
    boxes[1][0].stop()
    boxes[1][1].join(20)


def test_a_v311_client_is_served(box, mosquitto):
    heard = []
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
    client.on_message = lambda _client, _data, message: heard.append(json.loads(message.payload))
    client.connect("127.0.0.1", mosquitto.port)
    client.subscribe(f"{BASE}/answer")
    client.loop_start()
    client.publish(f"{BASE}/ask", json.dumps({"id": "old", "prompt": "p"}), qos=1)
    assert box.answer()["id"] == "old"
    deadline = time.monotonic() + 5
    while not heard and time.monotonic() < deadline:
        time.sleep(0.01)
    client.disconnect()
    client.loop_stop()
    assert heard[0]["text"] == "p "


def test_a_dead_broker_does_not_stop_the_start(model, free_port, tmp_path):
    settings = Settings(mqtt=MqttSettings("127.0.0.1", free_port, "box"), storage=StorageSettings(tmp_path))
    daemon = Daemon(settings, model, "1")
    thread = threading.Thread(target=daemon.run, daemon=True)
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    daemon.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_a_missing_password_file_is_one_line(model, tmp_path):
    mqtt = MqttSettings(username="u", password_file=tmp_path / "none")
    with pytest.raises(EdgeRuntimeError, match=r"mqtt.password_file .*none: No such file"):
        Daemon(Settings(mqtt=mqtt, storage=StorageSettings(tmp_path)), model, "1")


def test_a_missing_ca_is_one_line(model, tmp_path):
    mqtt = MqttSettings(tls_ca=tmp_path / "none")
    with pytest.raises(EdgeRuntimeError, match=r"mqtt.tls_ca .*none"):
        Daemon(Settings(mqtt=mqtt, storage=StorageSettings(tmp_path)), model, "1")


def test_answers_say_that_they_are_json(box):
    box.publish("ask", {"prompt": "p"}, ResponseTopic="mine/x")
    assert box.client.wait("mine/x").properties.ContentType == "application/json"
