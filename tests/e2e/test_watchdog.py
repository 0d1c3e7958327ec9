"""A thread of the HTTP server that hangs, with this test in systemd's place: it listens to the watchdog's word."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.conftest import BASE, START_S, wait_online

HANG = Path(__file__).parents[1] / "board" / "hang.py"
WATCHDOG_S = 4.0


@pytest.fixture
def notified(tmp_path):
    """A socket that hears what the daemon tells systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        yield listening


def _starved(listening):
    """Waits, as systemd does, until no word came for `WATCHDOG_S`; False: it comes all the time."""
    deadline, last = time.monotonic() + START_S, time.monotonic()
    while time.monotonic() < deadline:
        listening.settimeout(max(last + WATCHDOG_S - time.monotonic(), 0.001))
        try:
            if b"WATCHDOG=1" in listening.recv(1000):
                last = time.monotonic()
        except TimeoutError:
            return True
    return False


def _healthz(serving):
    with urllib.request.urlopen(f"{serving.url}/healthz", timeout=60) as answer:
        return answer.status


def test_a_hanging_http_server_starves_the_watchdog(mosquitto, mqtt_client, serve, notified):
    name = notified.getsockname()
    serving = serve(mosquitto.port, NOTIFY_SOCKET=name, WATCHDOG_USEC=str(int(WATCHDOG_S * 1e6)))
    wait_online(mqtt_client)
    assert _healthz(serving) == 200
    notified.settimeout(START_S)
    while b"WATCHDOG=1" not in notified.recv(1000):
        pass
    command = [sys.executable, str(HANG), str(serving.process.pid), "http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as hanging:
        if hanging.stdout.readline() != "stopped\n":
            error = hanging.stderr.read()
            assert "PermissionError" in error, error
            pytest.skip("ptrace is not allowed here")
        began = time.monotonic()
        try:
            mqtt_client.publish(f"{BASE}/ask", b'{"id": "meanwhile", "prompt": "When does the zoo open?"}')
            mqtt_client.wait(f"{BASE}/answer", lambda message: b"9 am" in message.payload)  # all else goes on
            assert _starved(notified)
            serving.process.send_signal(signal.SIGABRT)  # as systemd does it
            assert serving.process.wait(START_S) == -signal.SIGABRT
        finally:
            hanging.kill()
    assert "hung: http for" in serving.log
    serving.start()
    notified.settimeout(START_S)
    while b"READY=1" not in notified.recv(1000):
        pass
    assert _healthz(serving) == 200
    print(f"http hangs, watchdog of {WATCHDOG_S:.0f} s: serves again after {time.monotonic() - began:.1f} s")
