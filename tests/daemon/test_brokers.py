"""The line to the broker, where the broker is not as one wishes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from edge_runtime.daemon import mqtt
from edge_runtime.daemon.mqtt import Link
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import MqttSettings
from tests.daemon.lines import WAIT_S, Ears, link_to, mosquitto_with, password_lines, said

CURVE = ("-pkeyopt", "ec_paramgen_curve:prime256v1")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(mqtt, "BACKOFF_S", (0.05, 0.2))
    monkeypatch.setattr(mqtt, "SILENCE_S", 0.5)


def test_a_refusal_is_said_once_and_tried_again(tmp_path, free_port, caplog):
    password = tmp_path / "password"
    password.write_text("wrong\n")
    with (
        mosquitto_with(tmp_path, free_port, "allow_anonymous false"),
        caplog.at_level(logging.INFO),
        link_to(free_port, username="u", password_file=password) as link,
    ):
        assert not link.wait_online(0.7)
        assert link._connection > 2
    assert said(caplog, "refuses") == [
        f"the broker at 127.0.0.1:{free_port} refuses the connection: not authorized; trying again"
    ]


@pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="mosquitto_passwd is not installed")
def test_a_password_is_read_anew_and_may_be_a_credential(tmp_path, free_port, monkeypatch):
    (tmp_path / "mqtt-password").write_text("wrong\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    lines = password_lines(tmp_path, "right")
    with (
        mosquitto_with(tmp_path, free_port, *lines),
        link_to(free_port, username="u", password_file=type(tmp_path)("mqtt-password")) as link,
    ):
        assert not link.wait_online(0.7)
        (tmp_path / "mqtt-password").write_text("right\n")
        assert link.wait_online(WAIT_S)
        (tmp_path / "mqtt-password").unlink()  # later that is no reason to stop


def test_an_absent_broker_is_said_once(free_port, caplog):
    with caplog.at_level(logging.INFO), link_to(free_port) as link:
        time.sleep(0.7)
        assert link._connection > 2
    assert [record.message for record in caplog.records] == [
        f"the broker at 127.0.0.1:{free_port} cannot be reached; trying again"
    ]


@pytest.mark.parametrize("manner", ["refuses", "hangs up", "is silent"])
def test_a_broker_without_v5_is_spoken_to_in_v311(manner):
    """A broker of our own that reads the CONNECT and, unless it is v3.1.1, shows that it cannot."""
    versions = []
    done = threading.Event()

    def serve(listener):
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connect = connection.recv(1024)
            versions.append(connect[connect.index(b"MQTT") + 4])
            if versions[-1] == 4:
                connection.sendall(b"\x20\x02\x00\x00")  # CONNACK: accepted
                done.wait(10)
            elif manner == "refuses":
                connection.sendall(b"\x20\x02\x00\x01")  # CONNACK: unacceptable protocol version
            elif manner == "is silent":
                connection.recv(1024)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        with link_to(listener.getsockname()[1]):
            deadline = time.monotonic() + WAIT_S
            while 4 not in versions and time.monotonic() < deadline:
                time.sleep(0.02)
            done.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert versions[-1] == 4
    assert set(versions[:-1]) == {5}
    assert len(versions) <= 3


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x02\x00", b"\xff" * 5000, os.urandom(999)]
)
def test_what_is_no_broker_does_not_end_the_thread(garbage):
    connections = []

    def serve(listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            with contextlib.suppress(OSError):
                connection.sendall(garbage)
            if len(connections) % 2:
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        with link_to(listener.getsockname()[1]) as link:
            deadline = time.monotonic() + WAIT_S
            while len(connections) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert link._thread.is_alive()
        assert not link._thread.is_alive()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert len(connections) >= 2


def test_a_broker_that_stands_still_is_given_up_and_found_again(tmp_path, free_port, caplog):
    with (
        mosquitto_with(tmp_path, free_port, "allow_anonymous true") as process,
        caplog.at_level(logging.INFO),
        link_to(free_port, keepalive_s=1) as link,
    ):
        assert link.wait_online(WAIT_S)
        process.send_signal(signal.SIGSTOP)
        link.publish("t", "{}", token="late")
        deadline = time.monotonic() + WAIT_S
        while not said(caplog, "is gone") and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGCONT)
        assert said(caplog, "is gone")
        assert link.wait_online(WAIT_S)
        link.ears.wait(lambda: link.ears.deliveries)


def test_an_access_list_that_forbids_an_answer_is_said_and_told(tmp_path, free_port, caplog):
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite edge-runtime/#\n")
    with (
        mosquitto_with(tmp_path, free_port, "allow_anonymous true", f"acl_file {acl}", "user root"),
        link_to(free_port) as link,
    ):
        assert link.wait_online(WAIT_S)
        link.publish("forbidden", "{}", token="a")
        link.publish("edge-runtime/box/answer", "{}", token="b")
        link.publish("wild/#", "{}", token="c")
        link.ears.wait(lambda: len(link.ears.deliveries) == 3)
    outcome = dict(link.ears.deliveries)
    assert outcome["b"] is None
    assert outcome["a"] == "not authorized"
    assert "wildcards" in outcome["c"]
    assert len(said(caplog, "does not take")) == 1


def test_what_is_larger_than_a_broker_takes_does_not_end_the_connection(tmp_path, free_port):
    with (
        mosquitto_with(tmp_path, free_port, "allow_anonymous true", "max_packet_size 1000"),
        link_to(free_port) as link,
    ):
        assert link.wait_online(WAIT_S)
        link.publish("t", "x" * 2000, token="large")
        link.publish("t", "x", token="small")
        link.ears.wait(lambda: len(link.ears.deliveries) == 2)
        assert link._connection == 1
    assert "1000 bytes" in dict(link.ears.deliveries)["large"]


def test_tls_is_spoken_and_a_strange_certificate_is_not_trusted(tmp_path, free_port, caplog):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    for name in ("house", "strange"):
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", f"{tmp_path}/{name}.key", "-out", f"{tmp_path}/{name}.pem"]
        command = ["openssl", "req", "-x509", "-newkey", "ec", *CURVE, "-nodes", "-days", "2", *files, *subject]
        subprocess.run(command, check=True, capture_output=True)
    lines = ("allow_anonymous true", f"certfile {tmp_path}/house.pem", f"keyfile {tmp_path}/house.key", "user root")
    with mosquitto_with(tmp_path, free_port, *lines), caplog.at_level(logging.INFO):
        with link_to(free_port, tls_ca=tmp_path / "strange.pem") as link:
            assert not link.wait_online(0.5)
        assert len(said(caplog, "cannot be trusted")) == 1
        with link_to(free_port, tls_ca=tmp_path / "house.pem") as link:
            assert link.wait_online(WAIT_S)
            for number in range(30):
                link.publish("t", json.dumps("x" * 5000), token=number)
            link.ears.wait(lambda: len(link.ears.deliveries) == 30)


def test_a_v311_broker_keeps_our_session_too(mosquitto, mqtt_client):
    """The line speaks v3.1.1 from the start here, as it does when a broker knows nothing else."""
    with link_to(mosquitto.port) as link:
        assert link.wait_online(WAIT_S)
        link._wrong_version = True
        link._client.socket().shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + WAIT_S
        while link._client.protocol != MQTTProtocolVersion.MQTTv311 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert link.wait_online(WAIT_S)
        mqtt_client.publish("edge-runtime/box/ask", "lost")
        link.ears.wait_messages(1)
        link._client.socket().shutdown(socket.SHUT_RDWR)
        again = link.ears.wait_messages(2)[1]
        assert (again.payload, again.repeated) == (b"lost", True)
        link.acknowledge(again)
        link.publish("t", "{}", b"ignored", token="a")
        link.ears.wait(lambda: link.ears.deliveries)


def test_a_missing_credential_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(EdgeRuntimeError, match=r"mqtt.password_file .*/none: No such file"):
        Link(MqttSettings(username="u", password_file=type(tmp_path)("none")), {}, 100, Ears())
