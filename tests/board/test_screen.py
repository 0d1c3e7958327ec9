"""The page on the box's own screen, by the installed unit, in an emulated machine. Run by `make test-board`."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.board.test_power import START_S, machine

pytestmark = pytest.mark.slow

KIOSK = "edge-runtime-kiosk"
WIDTH, HEIGHT = 1280, 800
SUGGESTION = (178, 551)
BACKGROUND = (247, 243, 234)
"""What `[kiosk] background` is unless the settings say otherwise."""


class Screen:
    """A running machine: what is on its screen, what is pressed, and a shell in it."""

    def __init__(self, monitor: Path, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/"
        self._picture = monitor.with_name("screen.ppm")
        wait_for(monitor.exists, 30)
        line = socket.socket(socket.AF_UNIX)
        line.connect(str(monitor))
        self._monitor = line.makefile("rw")
        self._monitor.readline()
        self._do("qmp_capabilities")
        self._do("human-monitor-command", **{"command-line": f"hostfwd_add lan tcp:127.0.0.1:{port}-:18888"})

    def _do(self, name: str, **arguments: object) -> None:
        """A command of QEMU's."""
        self._monitor.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._monitor.flush()
        while "return" not in (answer := json.loads(self._monitor.readline())):
            assert "error" not in answer, answer

    def up(self) -> bool:
        try:
            return self.run("true", timeout_s=5) == ""
        except httpx2.TransportError:
            return False

    def run(self, command: str, timeout_s: float = 120) -> str:
        """What a shell in the machine says to it."""
        return httpx2.post(self._url, content=command, timeout=timeout_s).text.strip()

    def property(self, name: str, unit: str = KIOSK) -> str:
        return self.run(f"systemctl show -P {name} {unit}")

    def metric(self, name: str) -> int:
        """A metric of the daemon's, 0 if it has none or does not run."""
        code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/metrics').read().decode())"
        found = re.search(rf"^edge_runtime_{re.escape(name)} (\d+)$", self.run(f'python3 -c "{code}"'), re.MULTILINE)
        return int(found[1]) if found else 0

    def shown(self) -> Image.Image:
        self._do("screendump", filename=str(self._picture))
        with Image.open(self._picture) as picture:
            return picture.convert("RGB")

    def keys(self, *names: str) -> None:
        for name in names:
            self._do("send-key", keys=[{"type": "qcode", "data": name}])
            time.sleep(1)

    def press(self, x: int, y: int) -> None:
        places = {"x": x * 32767 // WIDTH, "y": y * 32767 // HEIGHT}
        moves = [{"type": "abs", "data": {"axis": axis, "value": value}} for axis, value in places.items()]
        self._do("input-send-event", events=moves)
        for down in (True, False):
            time.sleep(0.5)
            self._do("input-send-event", events=[{"type": "btn", "data": {"down": down, "button": "left"}}])


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    given = os.environ.get("EDGE_RUNTIME_SCREEN")
    if given is None:
        pytest.skip("needs a machine with a screen: make test-board")
    monitor = tmp_path_factory.mktemp("screen") / "monitor"
    more = ["-m", "2500", "-vga", "none", "-device", f"virtio-vga,xres={WIDTH},yres={HEIGHT}"]
    more += ["-device", "virtio-tablet-pci", "-qmp", f"unix:{monitor},server=on,wait=off"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with machine(Path(given), *more):
        made = Screen(monitor, port)
        wait_for(made.up)
        yield made


def test_the_page_comes_after_the_daemon_and_is_on_the_screen(screen):
    wait_for(lambda: screen.metric("http_talks") == 1)
    begun = int(screen.property("ExecMainStartTimestampMonotonic"))
    assert 0 < int(screen.property("ActiveEnterTimestampMonotonic", "edge-runtime")) <= begun
    wait_for(lambda: len(set(screen.shown().resize((64, 40)).getdata())) > 20)  # a picture, no console
    assert screen.run("systemd-analyze verify edge-runtime-kiosk.service") == ""


def test_the_browser_stays_within_the_units_limits(screen):
    inside = screen.run("cat $(find /sys/fs/cgroup/system.slice/edge-runtime-kiosk.service -name cgroup.procs)").split()
    browsers = screen.run("pgrep -f ^/usr/lib/chromium/chromium").split()
    assert len(browsers) > 3
    assert set(browsers) <= set(inside)
    user = {screen.run(f"stat -c %u /proc/{process}") for process in browsers}
    assert all(61184 <= int(number) <= 65519 for number in user)  # of systemd's dynamic users
    assert screen.property("NRestarts") == "0"


def test_a_visitor_asks_and_is_answered(screen):
    wait_for(lambda: welcomed(screen))
    time.sleep(3)  # for what moves to come to rest
    screen.press(*SUGGESTION)
    wait_for(lambda: screen.metric('requests_total{kind="ask",outcome="ok"}') == 1)
    screen.shown().save(Path(os.environ["EDGE_RUNTIME_SCREEN"]) / "answer.png")


def test_a_killed_browser_comes_back(screen):
    screen.run("kill -9 $(pgrep -o -f ^/usr/lib/chromium/chromium)")
    wait_for(lambda: screen.property("NRestarts") == "1")
    wait_for(lambda: screen.metric("http_talks") == 1)
    assert screen.property("ActiveState") == "active"


def test_it_is_taken_away_with_the_service(screen):
    screen.run("sh /opt/wheelhouse/install.sh --uninstall")
    assert screen.run("systemctl list-unit-files --no-legend 'edge-runtime*'; pgrep -f ^/usr/lib/chromium") == ""


def welcomed(screen):
    """Whether a visitor is let in; else asks for it, perhaps again: a browser that has just started may miss a key."""
    screen.keys("tab", "ret")
    for _ in range(60):
        if screen.shown().getpixel((100, 700)) == BACKGROUND:
            return True
        time.sleep(1)
    return False


def wait_for(holds, timeout_s=START_S):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(1)
