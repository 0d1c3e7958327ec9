"""A Debian in a container of systemd-nspawn, without a network, made by `make test-board`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
BOOT_S = 120.0
SERVICE = "edge-runtime"


class Board:
    """The running container."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._enter = ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p"]

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Starts a command in it."""
        clean = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        whole = [*self._enter, *command]
        return subprocess.Popen(whole, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, *command: str, check: bool = True) -> str:
        """Runs a command in it; what it printed."""
        process = self.popen(*command)
        output, _ = process.communicate(timeout=600)
        assert not check or process.returncode == 0, f"{command}: {output}"
        return output.strip()

    def asked(self, *arguments: str, timeout_s: float = 120) -> str:
        """What `tests/board/client.py` hears, which runs here with the container's network."""
        command = ["nsenter", *self._enter[1:3], "-n", "-u", sys.executable, "-m", "tests.board.client", *arguments]
        result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=timeout_s, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def property(self, name: str) -> str:
        """One of the service's properties."""
        return self.run("systemctl", "show", "-P", name, SERVICE)

    def main_pid(self) -> int:
        return int(self.property("MainPID"))

    def restarts(self) -> int:
        return int(self.property("NRestarts"))

    def wait_restarted(self, before: int, timeout_s: float = 60) -> float:
        """Seconds until systemd has started it once more and it is ready."""
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            if self.restarts() > before and self.property("ActiveState") == "active":
                return time.monotonic() - started
            time.sleep(0.2)
        raise AssertionError(self.journal())

    def journal(self, *arguments: str) -> str:
        return self.run("journalctl", "-u", SERVICE, "--no-pager", "-o", "cat", *arguments)

    def drop_in(self, text: str) -> None:
        """Changes the service's unit."""
        folder = self.root / f"etc/systemd/system/{SERVICE}.service.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test.conf").write_text(f"[Service]\n{text}\n")
        self.run("systemctl", "daemon-reload")

    def configure(self, text: str) -> None:
        (self.root / "etc/edge-runtime/config.toml").write_text(text)


@pytest.fixture(scope="session")
def board() -> Iterator[Board]:
    given = os.environ.get("EDGE_RUNTIME_BOARD")
    if given is None:
        pytest.skip("needs a container: make test-board")
    root = Path(given)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.0.1 board\n")
    (root / "etc/hostname").write_text("board\n")
    # Of the host's control groups version 1 does for all that is tested here; memory limits are not enforced in it.
    environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "0"}
    command = ["systemd-nspawn", "-q", "-D", str(root), "--register=no", "--keep-unit", "--private-network"]
    with (root.parent / "console.log").open("wb") as console:
        nspawn = subprocess.Popen([*command, "--hostname=board", "-b"], env=environment, stdout=console, stderr=console)
    try:
        running = Board(root, _leader(nspawn))
        deadline = time.monotonic() + BOOT_S
        while running.run("systemctl", "is-system-running", check=False) not in {"running", "degraded"}:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        running.run("sh", "/opt/wheelhouse/install.sh")
        yield running
    finally:
        with contextlib.suppress(Exception):
            running.run("systemctl", "poweroff", check=False)
            nspawn.wait(30)
        nspawn.kill()
        nspawn.wait()


def _leader(nspawn: subprocess.Popen[bytes]) -> int:
    """The container's first process, seen from here."""
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline:
        assert nspawn.poll() is None, "systemd-nspawn did not start"
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
        for child in children:
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
        time.sleep(0.1)
    raise AssertionError("the container did not boot")
