"""Cameras that are servers of their own: asked, watched, stalled."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest
from PIL import Image

import edge_runtime
from tests.e2e.conftest import BASE, wait_online
from tests.e2e.crowd import measured
from tests.perception.servers import MjpegCamera, RtspCamera

pytest.importorskip("av", reason="the extra camera is not installed")

SIGN = Path(edge_runtime.__file__).parent / "demo_assets" / "sign.png"
DOOR = {"EDGE_RUNTIME_CAMERAS__0__NAME": "door", "EDGE_RUNTIME_CAMERAS__0__READ_S": "1"}


class Scene:
    """What a camera sees: a picture that can be exchanged."""

    def __init__(self):
        self.image = sign()
        self.camera = MjpegCamera(lambda _: self.image, rate=10)


def sign():
    with Image.open(SIGN) as image:
        return image.convert("RGB").resize((384, 384))


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    scene.camera.close()


def body(client, topic, timeout_s=60):
    return json.loads(client.wait(f"{BASE}/{topic}", timeout_s=timeout_s).payload)


def status(client, value):
    client.wait(f"{BASE}/camera/door/status", lambda message: message.payload == value, 60)


def test_a_camera_takes_the_place_of_a_picture(scene, mosquitto, mqtt_client, serve):
    daemon = serve(mosquitto.port, **DOOR, EDGE_RUNTIME_CAMERAS__0__SOURCE=scene.camera.url)
    wait_online(mqtt_client)
    status(mqtt_client, b"online")
    mqtt_client.publish(f"{BASE}/describe", json.dumps({"id": "d", "camera": "door"}))
    answer = body(mqtt_client, "answer")
    assert (answer["id"], answer["text"]) == ("d", "FLOOR 17")
    mqtt_client.publish(f"{BASE}/ask", json.dumps({"prompt": "Read the sign.", "images": [{"camera": "door"}]}))
    assert body(mqtt_client, "answer")["text"] == "FLOOR 17"
    encoded = base64.b64encode(SIGN.read_bytes()).decode()
    mqtt_client.publish(f"{BASE}/ask", json.dumps({"prompt": "Read the sign.", "images": [encoded]}))
    assert body(mqtt_client, "answer")["text"] == "FLOOR 17"
    mqtt_client.publish(f"{BASE}/describe", json.dumps({"camera": "roof"}))
    assert "there are door" in body(mqtt_client, "answer")["error"]["message"]
    daemon.stop()
    assert "Traceback" not in daemon.log


def test_a_watched_camera_tells_what_has_changed_alone(scene, mosquitto, mqtt_client, serve):
    watched = {**DOOR, "EDGE_RUNTIME_CAMERAS__0__INTERVAL_S": "0.3"}
    daemon = serve(mosquitto.port, **watched, EDGE_RUNTIME_CAMERAS__0__SOURCE=scene.camera.url)
    wait_online(mqtt_client)
    first = body(mqtt_client, "event/frame")
    assert (first["camera"], first["answer"]) == ("door", "FLOOR 17")
    assert abs(first["taken"] - time.time()) < 60
    assert body(mqtt_client, "camera/door/answer")["id"] == first["id"]
    with pytest.raises(AssertionError, match="nothing on"):  # ten looks at the same picture
        body(mqtt_client, "event/frame", 3)
    scene.image = Image.new("RGB", (384, 384), "white")
    began = time.monotonic()
    assert body(mqtt_client, "event/frame")["answer"] != "FLOOR 17"
    measured("change before a watched camera -> event/frame", time.monotonic() - began)
    assert daemon.log.count("describe ") == 2  # so many questions were asked, one line each
    daemon.stop()
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_answers_about_a_watched_camera_have_the_form_of_a_schema(scene, mosquitto, mqtt_client, serve):
    schema = {"type": "object", "properties": {"open": {"type": "boolean"}}, "required": ["open"]}
    watched = {**DOOR, "EDGE_RUNTIME_CAMERAS__0__INTERVAL_S": "0.3"}
    watched |= {"EDGE_RUNTIME_CAMERAS__0__SCHEMA": json.dumps({**schema, "additionalProperties": False})}
    serve(mosquitto.port, **watched, EDGE_RUNTIME_CAMERAS__0__SOURCE=scene.camera.url)
    wait_online(mqtt_client)
    assert body(mqtt_client, "event/frame")["answer"] in ({"open": True}, {"open": False})


def test_a_stalled_camera_is_said_and_recovers(scene, mosquitto, mqtt_client, serve):
    daemon = serve(mosquitto.port, **DOOR, EDGE_RUNTIME_CAMERAS__0__SOURCE=scene.camera.url)
    wait_online(mqtt_client)
    status(mqtt_client, b"online")
    scene.camera.stalled = True
    began = time.monotonic()
    status(mqtt_client, b"offline")
    measured("camera stalls -> status offline (read_s = 1)", time.monotonic() - began)
    mqtt_client.publish(f"{BASE}/describe", json.dumps({"camera": "door"}))
    error = body(mqtt_client, "answer")["error"]
    assert error["code"] == "internal"
    assert "camera door" in error["message"]
    scene.camera.stalled = False
    began = time.monotonic()
    status(mqtt_client, b"online")
    measured("camera sends again -> status online", time.monotonic() - began)
    mqtt_client.publish(f"{BASE}/describe", json.dumps({"camera": "door"}))
    assert body(mqtt_client, "answer")["text"] == "FLOOR 17"
    daemon.stop()
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_an_rtsp_camera_is_described_and_its_restart_is_survived(free_port, mosquitto, mqtt_client, serve):
    camera = RtspCamera(free_port)
    daemon = serve(mosquitto.port, **DOOR, EDGE_RUNTIME_CAMERAS__0__SOURCE=camera.url)
    wait_online(mqtt_client)
    status(mqtt_client, b"online")
    mqtt_client.publish(f"{BASE}/describe", json.dumps({"camera": "door"}))
    assert body(mqtt_client, "answer")["text"]
    camera.close()
    status(mqtt_client, b"offline")
    again = RtspCamera(free_port)
    began = time.monotonic()
    status(mqtt_client, b"online")
    measured("RTSP camera back -> status online", time.monotonic() - began)
    again.close()
    daemon.stop()
    assert "Traceback" not in daemon.log
