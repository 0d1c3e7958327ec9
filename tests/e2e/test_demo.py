from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_runtime.cli._broker import find_mosquitto

# What `python -m edge_runtime` is, on a machine that has no mosquitto.
WITHOUT_MOSQUITTO = (
    "import sys; from edge_runtime.cli import _broker, main;"
    "_broker.find_mosquitto = lambda: None; sys.exit(main.main(['demo']))"
)


def children_of(pid):
    """Processes that `pid` started and that still run."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_the_demo_is_right(environment):
    command = [sys.executable, "-m", "edge_runtime", "demo"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "mosquitto on 127.0.0.1" in result.stdout
    assert result.stdout.count("  right") == result.stdout.count("  answer") >= 2
    assert "\x1b[" not in result.stdout


@pytest.mark.skipif(importlib.util.find_spec("amqtt") is None, reason="amqtt is not installed")
def test_the_demo_needs_no_mosquitto(environment):
    command = [sys.executable, "-c", WITHOUT_MOSQUITTO]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "amqtt on 127.0.0.1" in result.stdout


def test_without_any_broker_the_demo_says_what_to_install():
    code = "import sys; sys.modules['amqtt'] = None;" + WITHOUT_MOSQUITTO
    code = code.replace("_broker.find_mosquitto", "_broker.importlib.util.find_spec = _broker.find_mosquitto")
    code = code.replace("lambda: None", "lambda *_: None")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "edge-runtime: the demo needs an MQTT broker: apt-get install mosquitto, or pip install 'edge-runtime[demo]'"
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_behind(environment, number):
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_runtime", "demo"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("broker")
    time.sleep(0.1)
    left = children_of(process.pid)
    assert left
    process.send_signal(number)
    assert process.wait(30) == 130
    process.stdout.close()
    for pid in left:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
