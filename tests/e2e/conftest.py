"""The real command with the real built-in model, in processes of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge_runtime import builtin
from edge_runtime.cli._broker import broker, find_mosquitto
from edge_runtime.errors import EdgeRuntimeError
from tests.conftest import MqttClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
BASE = "edge-runtime/box"
START_S = 120.0


class Serving:
    """`edge-runtime serve` as device `box`, which can be killed and started again on the same state."""

    def __init__(self, environment: dict[str, str], folder: Path, port: int, **settings: str) -> None:
        self.state = folder / "state"
        self.log_file = folder / "serve.log"
        self._environment = {
            **environment,
            "EDGE_RUNTIME_MQTT__HOST": "127.0.0.1",
            "EDGE_RUNTIME_MQTT__PORT": str(port),
            "EDGE_RUNTIME_MQTT__DEVICE": "box",
            "EDGE_RUNTIME_MQTT__WILL_DELAY_S": "1",
            "EDGE_RUNTIME_STORAGE__STATE_DIR": str(self.state),
            "EDGE_RUNTIME_HTTP__LISTEN": "127.0.0.1:0",
            **settings,
        }
        self.start()

    def start(self) -> None:
        """Starts it, again if it has ended."""
        command = [sys.executable, "-m", "edge_runtime", "serve"]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stderr=log)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """SIGTERM; the seconds until it has ended, well."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(30) == 0
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # it writes down where each of its threads is
            self.process.wait(5)
            pytest.fail(f"the daemon does not stop:\n{self.log[-8000:]}")
        return time.monotonic() - started

    def pause(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    @property
    def url(self) -> str:
        """Where its HTTP server listens, as it says; of the last start."""
        deadline = time.monotonic() + START_S
        while not (found := re.findall(r"serving (https?://\S+)", self.log)):
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.05)
        return str(found[-1])

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def memory_mb(self, name: str = "VmRSS") -> float:
        """VmRSS, or VmHWM: the peak since the start."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(name))

    def forget_peak(self) -> None:
        """Begins VmHWM anew (proc(5), clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")

    def wait_busy(self, seconds: float = 1.0) -> None:
        """Waits until it has computed for so long: then the model is at work, and not only the import of something."""
        before, deadline = self._computed_s(), time.monotonic() + START_S
        while self._computed_s() - before < seconds:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait_delivered(self) -> None:
        """Waits until the broker has acknowledged all that was sent: what it has not is sent again to the next one."""
        deadline = time.monotonic() + START_S
        while True:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
                if b"edge_runtime_mqtt_undelivered 0\n" in answer.read():
                    return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _computed_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wakeups(self) -> int:
        """How often any of its threads went to sleep so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        lines = [line for task in tasks for line in (task / "status").read_text(encoding="ascii").splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def wait_online(client: MqttClient) -> None:
    """Waits until the daemon says that it is there."""
    client.subscribe(f"{BASE}/#")
    client.wait(f"{BASE}/status", lambda message: message.payload == b"online", timeout_s=START_S)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A clean environment, in which the built-in model's bundle is made once a run."""
    try:
        builtin.checkpoint_path()
    except EdgeRuntimeError as error:
        pytest.skip(str(error))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_RUNTIME_")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "EDGE_RUNTIME_CACHE": str(tmp_path_factory.mktemp("cache")),
        "EDGE_RUNTIME_MODEL__THREADS": "2",
    }


@pytest.fixture(scope="session")
def box(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, int]]:
    """A daemon, and its broker's port, for all tests that do it no harm."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with broker() as running:
        serving = Serving(environment, tmp_path_factory.mktemp("box"), running.port)
        client = MqttClient(running.port)
        wait_online(client)
        client.close()
        yield serving, running.port
        serving.stop()
        assert "Traceback" not in serving.log
        assert "ERROR" not in serving.log


@pytest.fixture
def client(box: tuple[Serving, int]) -> Iterator[MqttClient]:
    """A client of that broker, which hears all that the daemon says."""
    client = MqttClient(box[1])
    wait_online(client)
    yield client
    client.close()


@pytest.fixture
def serve(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Starts `edge-runtime serve` on a port."""
    started: list[Serving] = []

    def start(port: int, **settings: str) -> Serving:
        serving = Serving(environment, tmp_path, port, **settings)
        started.append(serving)
        return serving

    yield start
    for serving in started:
        serving.kill()
