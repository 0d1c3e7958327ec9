"""A broker of one's own on loopback, for the demo: mosquitto, else amqtt. Gone when the block ends.

`python -m edge_runtime.cli._broker PORT` is the amqtt one, as a child process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.machine import free_port

if TYPE_CHECKING:
    from collections.abc import Generator

START_S = 20.0
STOP_S = 15.0


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that runs."""

    name: str
    port: int
    speaks_v5: bool


def find_mosquitto() -> str | None:
    """The mosquitto binary; Debian keeps it where a user's PATH does not look."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


@contextlib.contextmanager
def broker(port: int | None = None) -> Generator[Broker, None, None]:
    """Runs a broker on `port` of 127.0.0.1, or on a free one.

    Raises:
        EdgeRuntimeError: There is none to run, or it does not start.
    """
    port = port or free_port()
    mosquitto = find_mosquitto()
    if mosquitto is None and importlib.util.find_spec("amqtt") is None:
        raise EdgeRuntimeError(
            "the demo needs an MQTT broker: apt-get install mosquitto, or pip install 'edge-runtime[demo]'"
        )
    with tempfile.TemporaryDirectory(prefix="edge-runtime-demo-") as folder:
        if mosquitto:
            config = Path(folder, "mosquitto.conf")
            config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n", encoding="utf-8")
            name, command = "mosquitto", [mosquitto, "-c", str(config)]
        else:
            name, command = "amqtt", [sys.executable, "-m", "edge_runtime.cli._broker", str(port)]
        with child(command, Path(folder, "broker.log")) as process:
            _wait_for_port(port, process, name)
            yield Broker(name, port, speaks_v5=name == "mosquitto")


@contextlib.contextmanager
def child(command: list[str], log: Path) -> Generator[subprocess.Popen[bytes], None, None]:
    """Runs a process whose output goes to `log`; at the end of the block it is stopped, by force if need be."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # The demo is about itself: settings of a daemon that is installed here stay out of it.
        if not (name.startswith("EDGE_RUNTIME_") and "__" in name)
    }
    with log.open("wb") as output:
        # A session of its own, so that Ctrl-C reaches us alone and we stop the children in order.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # after a second Ctrl-C as well
            process.kill()
            process.wait()


def _wait_for_port(port: int, process: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise EdgeRuntimeError(f"the demo's broker ({name}) did not start", "internal")


def _serve_amqtt(port: int) -> None:
    """Runs amqtt until SIGTERM."""
    import asyncio

    from amqtt.broker import Broker as Amqtt

    async def serve() -> None:
        server = Amqtt(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await server.start()
        await stop.wait()
        await server.shutdown()

    asyncio.run(serve())


if __name__ == "__main__":
    _serve_amqtt(int(sys.argv[1]))
