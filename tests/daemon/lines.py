"""Lines to brokers that can be heard, and brokers with a configuration of their own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time

import pytest

from edge_runtime.cli._broker import child, find_mosquitto
from edge_runtime.daemon.mqtt import Link
from edge_runtime.settings import MqttSettings

WAIT_S = 30.0


class Ears:
    """Hears what the line says; acknowledges nothing unless `keep` is off."""

    def __init__(self):
        self.messages = []
        self.deliveries = []
        self.changed = threading.Condition()

    def arrived(self, message):
        with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    def delivered(self, token, problem):
        with self.changed:
            self.deliveries.append((token, problem))
            self.changed.notify_all()

    def wait(self, ready, timeout_s=WAIT_S):
        with self.changed:
            assert self.changed.wait_for(ready, timeout_s), (self.messages, self.deliveries)

    def wait_messages(self, count):
        self.wait(lambda: len(self.messages) >= count)
        return self.messages


class Heard(Link):
    """A line, with the ears that hear it."""

    ears: Ears


@contextlib.contextmanager
def link_to(port, payload_bytes=10_000, **settings):
    ears = Ears()
    link = Heard(MqttSettings("127.0.0.1", port, "box", **settings), {"model": "fake"}, payload_bytes, ears)
    link.ears = ears
    link.start()
    try:
        yield link
    finally:
        link.stop(1.0)


@contextlib.contextmanager
def mosquitto_with(tmp_path, port, *lines, wait=True):
    """mosquitto with a configuration of its own."""
    mosquitto = find_mosquitto()
    if mosquitto is None:
        pytest.skip("mosquitto is not installed")
    config = tmp_path / "mosquitto.conf"
    config.write_text("\n".join([f"listener {port} 127.0.0.1", *lines]) + "\n")
    with child([mosquitto, "-c", str(config)], tmp_path / f"log-{time.monotonic()}") as process:
        deadline = time.monotonic() + WAIT_S
        while wait and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield process


def persistent(tmp_path):
    return ("allow_anonymous true", "persistence true", f"persistence_location {tmp_path}/", "user root")


def password_lines(tmp_path, password):
    file = tmp_path / "passwords"
    file.touch()
    subprocess.run(["mosquitto_passwd", "-b", str(file), "u", password], check=True, capture_output=True)
    return ("allow_anonymous false", f"password_file {file}", "user root")


def said(caplog, word):
    return [record.message for record in caplog.records if word in record.message]
