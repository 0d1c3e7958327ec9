"""Power cuts: the box is a machine in qemu, which is killed under load; broker and clients live outside of it."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import MqttClient
from tests.e2e.conftest import BASE
from tests.e2e.crowd import Crowd, measured, mosquitto_with, since

pytestmark = pytest.mark.slow

PORT = 18831
"""The broker, as the machine's settings say."""
CUTS = int(os.environ.get("EDGE_RUNTIME_CUTS", "3"))
START_S = 400.0


@contextlib.contextmanager
def machine(folder, *more):
    """The box, switched on; its power is cut at the end. `more` are arguments of QEMU's. No KVM: it runs anywhere."""
    (kernel,), (initrd,) = folder.glob("vmlinuz-*"), folder.glob("initrd.img-*")
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1500", "-nographic"]
    command += ["-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd)]
    command += ["-append", "root=/dev/vda rw console=ttyS0 quiet"]
    command += ["-drive", f"file={folder / 'root.img'},format=raw,if=virtio"]
    command += ["-netdev", "user,id=lan,restrict=off", "-device", "virtio-net-pci,netdev=lan", *more]
    with (folder / "console.log").open("ab") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_online():
    client = MqttClient(PORT)
    client.subscribe(f"{BASE}/status")
    client.wait(f"{BASE}/status", lambda message: message.payload == b"online", timeout_s=START_S)
    client.close()


def test_a_power_cut_loses_nothing(tmp_path):
    given = os.environ.get("EDGE_RUNTIME_MACHINE")
    if given is None:
        pytest.skip("needs a machine: make test-board")
    dice = random.Random(7)
    run = f"{time.time():.0f}"  # the disk remembers the ids of the last run
    lines = ("allow_anonymous true", "max_queued_messages 0")
    with mosquitto_with(tmp_path, PORT, *lines), Crowd(PORT, 4, "power") as crowd:
        for cut in range(CUTS + 1):
            started = time.monotonic()
            with machine(Path(given)):
                wait_online()
                measured("power is back: online (boot in emulation included)", since(started))
                if cut == CUTS:
                    crowd.wait(timeout_s=START_S)
                    time.sleep(5)
                    break
                for number in range(30):
                    body = {"prompt": "When does the zoo open?", "max_tokens": 8}
                    crowd.ask(f"{BASE}/ask", body, f"{run}-{cut}/{number}", number)
                crowd.wait_outstanding(dice.randrange(8, 24), timeout_s=START_S)
                time.sleep(dice.random())
                print(f"cut {cut}: {crowd.outstanding()} of {len(crowd.sent)} not answered yet")
            status = MqttClient(PORT)
            status.subscribe(f"{BASE}/status")
            status.wait(f"{BASE}/status", lambda message: message.payload == b"offline", timeout_s=60)
            status.close()
        repeated = crowd.repeated()
        print(f"{len(crowd.sent)} requests, {len(crowd.finals)} answered, {len(repeated)} of them heard again")
        assert set(crowd.finals) == set(crowd.sent)
        assert crowd.codes() == {"ok": len(crowd.sent)}
        assert all(len(set(bodies)) == 1 for bodies in repeated.values())
