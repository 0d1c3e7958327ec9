"""The broker, the disk and the file of requests fail; how long it takes until questions are answered again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest

from edge_runtime.cli._broker import find_mosquitto
from tests.conftest import MqttClient
from tests.e2e.conftest import BASE, wait_online
from tests.e2e.crowd import Crowd, long_recording, measured, mosquitto_with, since

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
QUESTION = json.dumps({"prompt": "When does the zoo open?"})


def answered(port, since_when, what, timeout_s=120):
    """Asks as soon as the daemon is there; measures until the answer comes."""
    client = MqttClient(port)
    client.subscribe(f"{BASE}/#")
    client.wait(f"{BASE}/status", lambda message: message.payload == b"online", timeout_s)
    client.publish(f"{BASE}/ask", QUESTION)
    assert "9 am" in json.loads(client.wait(f"{BASE}/answer").payload)["text"]
    measured(what, since(since_when))
    client.close()


def test_a_killed_broker_is_found_again_and_no_accepted_request_is_lost(tmp_path, free_port, serve):
    with mosquitto_with(tmp_path, free_port) as broker:
        daemon = serve(free_port, EDGE_RUNTIME_LIMITS__QUEUE="4")
        client = MqttClient(free_port)
        wait_online(client)
        with Crowd(free_port, 2) as crowd:
            crowd.ask(f"{BASE}/transcribe", long_recording(200), "long")
            daemon.wait_busy()
            for number in range(4):
                crowd.ask(f"{BASE}/ask", {"prompt": "When does the zoo open?"}, f"waits-{number}")
            crowd.ask(f"{BASE}/ask", {"prompt": "x"}, "refused")
            crowd.wait(1)  # `busy`: all before it have been accepted
            assert json.loads(crowd.finals["refused"][0])["error"]["code"] == "busy"
            daemon.wait_delivered()
            broker.kill()
            broker.wait()
            daemon.pause()  # the clients shall be there first, to hear it
            with mosquitto_with(tmp_path, free_port):
                time.sleep(1.5)
                daemon.go_on()
                crowd.wait()
                time.sleep(0.5)
                assert crowd.repeated() == {}
                assert crowd.codes() == {"ok": 5, "busy": 1}
                assert daemon.log.count("is gone") == 1
        client.close()


@pytest.mark.slow
@pytest.mark.parametrize("away_s", [0, 10, 60])
def test_a_broker_that_was_away(tmp_path, free_port, serve, away_s):
    with mosquitto_with(tmp_path, free_port) as broker:
        serve(free_port)
        client = MqttClient(free_port)
        wait_online(client)
        client.close()
        time.sleep(11)  # the connection has held
        broker.kill()
        broker.wait()
    time.sleep(away_s)
    with mosquitto_with(tmp_path, free_port):
        answered(free_port, time.monotonic(), f"broker killed, away for {away_s} s")


@pytest.mark.slow
def test_a_broker_that_stands_still(tmp_path, free_port, serve):
    with mosquitto_with(tmp_path, free_port) as broker:
        daemon = serve(free_port)
        client = MqttClient(free_port)
        wait_online(client)
        client.close()
        broker.send_signal(signal.SIGSTOP)
        time.sleep(60)
        broker.send_signal(signal.SIGCONT)
        answered(free_port, time.monotonic(), "broker stood still for 60 s")
    assert "is gone" in daemon.log


@pytest.mark.slow
def test_a_wrong_password_is_mended_without_a_restart(tmp_path, free_port, serve):
    users, secret = tmp_path / "users", tmp_path / "secret"
    users.touch()
    for name in ("box", "client"):
        subprocess.run(["mosquitto_passwd", "-b", str(users), name, "right"], check=True, capture_output=True)
    secret.write_text("wrong\n")
    with mosquitto_with(tmp_path, free_port, "allow_anonymous false", f"password_file {users}") as broker:
        account = {"EDGE_RUNTIME_MQTT__USERNAME": "box", "EDGE_RUNTIME_MQTT__PASSWORD_FILE": str(secret)}
        daemon = serve(free_port, **account)
        deadline = time.monotonic() + 60
        while "not authorized" not in daemon.log and time.monotonic() < deadline:
            time.sleep(0.05)
        secret.write_text("right\n")
        started = time.monotonic()
        while "connected" not in daemon.log and time.monotonic() < deadline:
            time.sleep(0.05)
        measured("right password written", since(started))
        assert daemon.log.count("not authorized") == 1
        assert broker.poll() is None


@pytest.mark.slow
def test_a_forbidden_answer_is_sent_when_the_access_list_is_mended(tmp_path, free_port, serve):
    acl = tmp_path / "acl"
    narrow = f"topic readwrite {BASE}/#\ntopic read mine\n"
    acl.write_text(narrow)
    with mosquitto_with(tmp_path, free_port, "allow_anonymous true", f"acl_file {acl}") as broker:
        daemon = serve(free_port)
        client = MqttClient(free_port)
        wait_online(client)
        client.subscribe("mine")
        client.publish(f"{BASE}/ask", QUESTION, ResponseTopic="mine")
        client.publish(f"{BASE}/ask", QUESTION)
        assert "9 am" in json.loads(client.wait(f"{BASE}/answer").payload)["text"]
        assert "does not take what is for mine: not authorized" in daemon.log
        acl.write_text(narrow + "topic readwrite mine\n")
        broker.send_signal(signal.SIGHUP)
        daemon.kill()  # at a start it is offered again, too; waiting would take half a minute
        daemon.start()
        assert "9 am" in json.loads(client.wait("mine", timeout_s=120).payload)["text"]
        client.close()


@pytest.mark.slow
def test_a_forbidden_answer_is_offered_again(tmp_path, free_port, serve):
    acl = tmp_path / "acl"
    acl.write_text(f"topic readwrite {BASE}/#\n")
    with mosquitto_with(tmp_path, free_port, "allow_anonymous true", f"acl_file {acl}") as broker:
        daemon = serve(free_port)
        client = MqttClient(free_port)
        wait_online(client)
        client.subscribe("mine")
        client.publish(f"{BASE}/ask", QUESTION, ResponseTopic="mine")
        while "does not take" not in daemon.log:
            time.sleep(0.05)
        acl.write_text(f"topic readwrite {BASE}/#\ntopic readwrite mine\n")
        broker.send_signal(signal.SIGHUP)
        started = time.monotonic()
        assert "9 am" in json.loads(client.wait("mine", timeout_s=60).payload)["text"]
        measured("access list mended", since(started))
        client.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    folder = tmp_path / "state"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file):
    """Leaves no room on the disk."""
    with file.open("ab", buffering=0) as sink:
        for size in (2**20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    sink.write(bytes(size))


def test_a_full_disk_refuses_and_what_was_accepted_is_answered(mosquitto, mqtt_client, serve, small_disk):
    daemon = serve(mosquitto.port)
    wait_online(mqtt_client)
    with Crowd(mosquitto.port, 1) as crowd:
        crowd.ask(f"{BASE}/transcribe", long_recording(200), "accepted")
        daemon.wait_busy()
        fill(small_disk / "rubbish")
        for number in range(4):  # the WAL may have room left for one
            crowd.ask(f"{BASE}/transcribe", b"RIFF\0\0\0\0WAVE" + bytes(3_000_000), f"refused-{number}")
        crowd.wait()
        assert "text" in json.loads(crowd.finals["accepted"][0])
        refusals = [json.loads(crowd.finals[f"refused-{number}"][0])["error"] for number in range(4)]
        assert any(error["code"] == "busy" and "store" in error["message"] for error in refusals)
        assert daemon.process.poll() is None
        (small_disk / "rubbish").unlink()
        crowd.ask(f"{BASE}/ask", {"prompt": "When does the zoo open?"}, "afterwards")
        crowd.wait()
        assert "9 am" in json.loads(crowd.finals["afterwards"][0])["text"]
        assert crowd.repeated() == {}
    assert daemon.log.count("cannot be written") == 1
    daemon.stop()
    assert "Traceback" not in daemon.log


def test_a_damaged_file_is_set_aside_and_the_daemon_starts(mosquitto, serve):
    daemon = serve(mosquitto.port)
    answered(mosquitto.port, time.monotonic(), "first start")
    daemon.kill()
    (file,) = daemon.state.glob("*.db")
    file.write_bytes(os.urandom(50_000))
    file.with_name(f"{file.name}-wal").unlink()  # from which SQLite would mend it
    started = time.monotonic()
    daemon.start()
    answered(mosquitto.port, started, "file of requests damaged, start of the process")
    assert daemon.log.count("set aside") == 1


@pytest.mark.slow
def test_two_daemons_of_one_name_are_one_too_many(mosquitto, mqtt_client, serve):
    first = serve(mosquitto.port)
    wait_online(mqtt_client)
    second = serve(mosquitto.port)
    assert second.process.wait(60) == 2
    assert "another daemon uses it" in second.log
    assert first.process.poll() is None
