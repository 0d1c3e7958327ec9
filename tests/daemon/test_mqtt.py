"""The line to the broker, where the broker is not as one wishes."""

from __future__ import annotations

import logging
import socket
import threading
import time

import pytest

from edge_runtime.cli._broker import child, find_mosquitto
from edge_runtime.daemon.mqtt import Link
from edge_runtime.settings import MqttSettings


def link_to(port, **settings):
    return Link(MqttSettings("127.0.0.1", port, "box", **settings), {"model": "fake"}, 10_000, lambda _: None)


@pytest.fixture
def strict_broker(tmp_path, free_port):
    """mosquitto that lets nobody in without the right password."""
    mosquitto = find_mosquitto()
    if mosquitto is None:
        pytest.skip("mosquitto is not installed")
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {free_port} 127.0.0.1\nallow_anonymous false\n")
    with child([mosquitto, "-c", str(config)], tmp_path / "log"):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", free_port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield free_port


def test_a_refusal_is_said_once_and_tried_again(strict_broker, tmp_path, caplog):
    password = tmp_path / "password"
    password.write_text("wrong\n")
    link = link_to(strict_broker, username="u", password_file=password)
    with caplog.at_level(logging.INFO):
        link.start()
        assert not link.wait_online(2.5)  # two tries
    link.stop(0.5)
    said = [record.message for record in caplog.records if "refuses" in record.message]
    assert said == [f"the broker at 127.0.0.1:{strict_broker} refuses the connection: not authorized; trying again"]


def test_an_absent_broker_is_said_once(free_port, caplog):
    link = link_to(free_port)
    with caplog.at_level(logging.INFO):
        link.start()
        time.sleep(2.5)
    link.stop(0.5)
    said = [record.message for record in caplog.records]
    assert said == [f"the broker at 127.0.0.1:{free_port} cannot be reached; trying again"]


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
        link = link_to(listener.getsockname()[1])
        link.start()
        deadline = time.monotonic() + 10
        while 4 not in versions and time.monotonic() < deadline:
            time.sleep(0.02)
        done.set()
        link.stop(0.5)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert versions[-1] == 4
    assert set(versions[:-1]) == {5}
