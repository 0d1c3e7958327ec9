from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edge_runtime
from edge_runtime.cli._broker import broker, find_mosquitto
from tests.conftest import MqttClient

BASE = "edge-runtime/box"
ASSETS = Path(edge_runtime.__file__).parent / "demo_assets"
QUESTIONS = json.loads((ASSETS / "demo.json").read_text(encoding="utf-8"))


def online(client):
    client.subscribe(f"{BASE}/#")
    client.wait(f"{BASE}/status", lambda message: message.payload == b"online", timeout_s=120)


def words(text):
    return re.findall(r"\w+", text.lower())


def payload(question, **more):
    data = (ASSETS / question["file"]).read_bytes()
    if question["topic"] == "transcribe":
        return data
    encoded = base64.b64encode(data).decode()
    media = {"audio": encoded} if question["file"].endswith(".wav") else {"images": [encoded]}
    return json.dumps({"id": question["title"], "prompt": question["prompt"], **media, **more})


def test_the_built_in_model_answers_speech_and_images_over_mqtt(mosquitto, mqtt_client, serve):
    process = serve(mosquitto.port)
    online(mqtt_client)
    info = json.loads(mqtt_client.wait(f"{BASE}/info").payload)
    assert info["modalities"] == ["text", "image", "audio"]
    for question in QUESTIONS:
        mqtt_client.publish(f"{BASE}/{question['topic']}", payload(question))
        answer = json.loads(mqtt_client.wait(f"{BASE}/answer").payload)
        assert words(answer["text"]) == words(question["expected"])
    image = next(question for question in QUESTIONS if question["file"].endswith(".png"))
    mqtt_client.publish(f"{BASE}/describe", (ASSETS / image["file"]).read_bytes())
    assert "error" not in json.loads(mqtt_client.wait(f"{BASE}/answer").payload)
    mqtt_client.publish(f"{BASE}/ask", payload({**image, "title": "streamed"}, stream=True))
    answer = json.loads(mqtt_client.wait(f"{BASE}/answer").payload)
    first = json.loads(mqtt_client.wait(f"{BASE}/answer/delta").payload)
    assert first["seq"] == 0
    assert answer["text"].startswith(first["text"])
    mqtt_client.publish(f"{BASE}/ask", json.dumps({"id": "long", "prompt": "the museum " * 4000}))
    assert json.loads(mqtt_client.wait(f"{BASE}/answer").payload)["error"]["code"] in {"bad_request", "too_large"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    mqtt_client.wait(f"{BASE}/status", lambda message: message.payload == b"offline")
    assert "Traceback" not in process.communicate()[1]


def test_a_killed_daemon_is_offline_by_its_last_will(mosquitto, mqtt_client, serve):
    process = serve(mosquitto.port)
    online(mqtt_client)
    process.kill()
    mqtt_client.wait(f"{BASE}/status", lambda message: message.payload == b"offline")


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_the_daemon_outlives_its_broker(free_port, serve):
    process = serve(free_port)  # starts before there is any broker
    time.sleep(1)
    assert process.poll() is None
    for _ in range(2):
        with broker(free_port):
            client = MqttClient(free_port)
            online(client)
            client.publish(f"{BASE}/ask", json.dumps({"prompt": "When does the gift shop open?"}))
            assert json.loads(client.wait(f"{BASE}/answer").payload)["finish_reason"] == "stop"
            client.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [("[mqtt]\nprot = 1\n", ":2: unknown key mqtt.prot"), ('[model]\npath = "/nowhere"\n', "/nowhere: no such folder")],
)
def test_bad_settings_are_one_line_and_exit_2(tmp_path, text, says):
    config = tmp_path / "config.toml"
    config.write_text(text)
    command = [sys.executable, "-m", "edge_runtime", "serve", "--config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
