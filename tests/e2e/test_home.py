"""Home Assistant's discovery, the Frigate example and the Node-RED flow, with the real broker and model."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

import edge_runtime
from edge_runtime.cli._broker import child
from tests.e2e.conftest import BASE, ROOT, wait_online

SIGN = Path(edge_runtime.__file__).parent / "demo_assets" / "sign.png"
EXAMPLES = ROOT / "deploy" / "examples"
CONFIG = "homeassistant/device/edge-runtime-box/config"


def sign_jpeg():
    buffer = io.BytesIO()
    with Image.open(SIGN) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_home_assistant_finds_the_box_presses_its_buttons_and_loses_it(mosquitto, mqtt_client, serve, tmp_path):
    picture = tmp_path / "front door.jpg"
    picture.write_bytes(sign_jpeg())
    camera = {"EDGE_RUNTIME_CAMERAS__0__NAME": "door", "EDGE_RUNTIME_CAMERAS__0__SOURCE": str(picture)}
    daemon = serve(mosquitto.port, **camera, EDGE_RUNTIME_MQTT__DISCOVERY="true")
    wait_online(mqtt_client)
    mqtt_client.subscribe(CONFIG)
    entities = json.loads(mqtt_client.wait(CONFIG).payload)["components"]
    button = entities["describe_door"]
    mqtt_client.publish(button["command_topic"], button["payload_press"])
    answer = json.loads(mqtt_client.wait(entities["answer"]["state_topic"]).payload)
    assert answer["text"] == "FLOOR 17"
    mqtt_client.publish("homeassistant/status", "online")
    assert json.loads(mqtt_client.wait(CONFIG).payload)["components"] == entities
    daemon.stop()
    again = serve(mosquitto.port, **camera)
    mqtt_client.wait(CONFIG, lambda message: message.payload == b"", 60)
    again.stop()


def test_frigates_snapshots_are_put_into_words(box, client):
    command = [sys.executable, str(EXAMPLES / "frigate_snapshots.py"), "--port", str(box[1]), "--device", "box"]
    client.subscribe("frigate-described/door/#")
    with child([*command, "--prompt", "Read the sign."], box[0].log_file.with_name("frigate.log")):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            client.publish("frigate/door/person/snapshot", sign_jpeg())  # it may not have subscribed yet
            try:
                said = client.wait("frigate-described/door/person", timeout_s=3)
                break
            except AssertionError:
                continue
        assert said.payload == b"FLOOR 17"
        client.publish("frigate/door/dog/snapshot", b"no picture")
        assert b"not a JPEG" in client.wait("frigate-described/door/dog").payload


def flow_nodes():
    return json.loads((EXAMPLES / "node-red-flow.json").read_text(encoding="utf-8"))


def test_the_flow_is_wired_and_speaks_of_topics_that_are_there():
    nodes = flow_nodes()
    ids = {node["id"] for node in nodes}
    assert len(ids) == len(nodes)
    wired = {target for node in nodes for output in node.get("wires", []) for target in output}
    assert wired <= ids
    topics = {node["topic"] for node in nodes if node["type"].startswith("mqtt ") and "/box/" in node["topic"]}
    assert topics == {f"{BASE}/ask", f"{BASE}/event/#"}


@pytest.mark.slow
def test_node_red_runs_the_flow(box, client, tmp_path, free_port):
    program = os.environ.get("NODE_RED") or shutil.which("node-red")
    if program is None:
        pytest.skip("node-red is not installed (npm install node-red; its path in NODE_RED)")
    nodes = flow_nodes()
    for node in nodes:
        if node["type"] == "mqtt-broker":
            node["broker"], node["port"] = "127.0.0.1", str(box[1])
    (tmp_path / "flows.json").write_text(json.dumps(nodes), encoding="utf-8")
    (tmp_path / "settings.js").write_text("module.exports = {flowFile: 'flows.json', uiHost: '127.0.0.1'}")
    client.subscribe("node-red/edge-runtime/said")
    command = [program, "-u", str(tmp_path), "-s", str(tmp_path / "settings.js"), "-p", str(free_port)]
    with child(command, tmp_path / "node-red.log"):
        press(free_port)
        assert b"9 am" in client.wait("node-red/edge-runtime/said", timeout_s=60).payload


def press(port):
    """Presses the flow's button, as soon as Node-RED is there and its broker connected."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/inject/edge-inject", method="POST", data=b"")
            urllib.request.urlopen(request, timeout=5).close()
        except (OSError, http.client.HTTPException):
            time.sleep(0.5)
        else:
            return
    raise AssertionError("Node-RED does not start")


def test_the_example_needs_nothing_but_paho():
    source = (EXAMPLES / "frigate_snapshots.py").read_text(encoding="utf-8")
    assert "edge_runtime" not in source
    help_text = subprocess.run(
        [sys.executable, str(EXAMPLES / "frigate_snapshots.py"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "--device" in help_text
