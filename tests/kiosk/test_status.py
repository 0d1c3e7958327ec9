from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from edge_runtime.daemon.admission import Admission
from edge_runtime.daemon.metrics import Registry
from edge_runtime.daemon.pressure import Pressure, Reading
from edge_runtime.daemon.watchdog import Watchdog
from edge_runtime.engine.plan import MemoryPlan
from edge_runtime.kiosk import status
from edge_runtime.kiosk.status import Status, planned
from edge_runtime.settings import PressureSettings


class Keeping:
    """What `Status` looks at of the daemon's upkeep."""

    def __init__(self) -> None:
        self.metrics = Registry()
        self.watchdog = Watchdog()
        self.pressure = Pressure(PressureSettings(), lambda _: None)


@pytest.fixture
def upkeep():
    return Keeping()


@pytest.fixture
def shown(upkeep):
    made = Status(upkeep, Admission(4, 2), lambda: {"version": "1"})
    made.start()
    yield made
    made.close()


def test_it_says_how_the_box_is(shown):
    found = shown.snapshot()
    assert found["version"] == "1"
    assert (found["trouble"], found["waiting"], found["running"]) == (None, 0, 0)
    assert 10**6 < found["used"] < 2**36
    assert found["available"] > 0


def test_each_look_is_a_point(shown, upkeep):
    upkeep.pressure.readings = [Reading("cpu", 51.04, None, None, "°C"), Reading("gpu", 60, None, None, "°C")]
    upkeep.metrics.ended("ask", "ok")
    upkeep.metrics.ended("ask", "busy")
    shown.look()
    shown.look()
    points = shown.snapshot()["points"]
    assert [point["requests"] for point in points] == [0, 2, 0]
    assert [point["celsius"] for point in points] == [None, 60, 60]
    assert all(0 <= point["cpu"] <= 100 for point in points)
    assert shown.snapshot()["outcomes"] == {"ok": 1, "busy": 1}


def test_an_hour_is_kept(shown):
    for _ in range(status.POINTS + 5):
        shown.look()
    assert len(shown.snapshot()["points"]) == status.POINTS
    assert status.POINTS * status.LOOK_S == 3600


def test_the_last_warnings_are_kept_newest_first(shown):
    log = logging.getLogger("edge_runtime.somewhere")
    for number in range(status.ERRORS + 1):
        log.warning("trouble %d\nmore", number)
    log.info("nothing of note")
    errors = shown.snapshot()["errors"]
    assert [error["says"] for error in errors] == [f"trouble {number}" for number in range(status.ERRORS, 0, -1)]
    assert errors[0]["level"] == "warning"


def test_it_leaves_no_handler_behind(upkeep):
    before = list(logging.getLogger("edge_runtime").handlers)
    made = Status(upkeep, Admission(4, 2), dict)
    made.start()
    made.close()
    made._thread.join(5)
    assert logging.getLogger("edge_runtime").handlers == before
    assert not made._thread.is_alive()


def test_a_plans_parts_make_its_total():
    plan = MemoryPlan(weights=5, tables=3, activations=2, towers=0, kv=1, prefix_cache=0)
    assert planned(plan) == {"total": 8, "weights": 5, "tables": 3, "activations": 2, "kv": 1}
    assert planned(None) is None


def test_children_count_too():
    before = status._used()
    command = [sys.executable, "-c", "data = bytearray(100_000_000); print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        during = status._used()
        child.communicate(b"\n")
    assert during - before > 50_000_000
