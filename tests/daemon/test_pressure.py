from __future__ import annotations

import logging

import pytest

from edge_runtime.daemon.admission import REFUSAL_S, Admission
from edge_runtime.daemon.pressure import CALM, REFUSE, SLOW, Pressure
from edge_runtime.settings import PressureSettings

MEMINFO = "MemTotal: {total} kB\nMemAvailable: {free} kB"


class Box:
    """A /proc and a /sys whose figures can be set."""

    def __init__(self, root):
        self.root = root
        self.zone(0, "cpu-thermal", 50, passive=85, critical=105)
        self.psi("memory", 0)
        self.psi("cpu", 0)
        self.memory(8_000_000, 4_000_000)

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="ascii")

    def zone(self, number, name, celsius, **trips):
        folder = f"sys/class/thermal/thermal_zone{number}"
        self.write(f"{folder}/type", name)
        self.write(f"{folder}/temp", int(celsius * 1000))
        for index, (kind, degrees) in enumerate(trips.items()):
            self.write(f"{folder}/trip_point_{index}_type", kind)
            self.write(f"{folder}/trip_point_{index}_temp", degrees * 1000)

    def psi(self, kind, percent):
        self.write(f"proc/pressure/{kind}", f"some avg10={percent:.2f} avg60=0.00 avg300=0.00 total=1")

    def memory(self, total, free):
        self.write("proc/meminfo", MEMINFO.format(total=total, free=free))


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)


@pytest.fixture
def told():
    return []


@pytest.fixture
def pressure(box, told):
    return Pressure(PressureSettings(), lambda pressure: told.append(pressure.level), box.root)


def test_a_calm_box_tells_nobody(pressure, told):
    pressure.look()
    assert pressure.level == CALM
    assert pressure.pace == 1.0
    assert told == []
    assert {reading.source for reading in pressure.readings} == {
        "cpu-thermal",
        "waiting for memory",
        "waiting for cpu",
        "memory in use",
    }


def test_heat_slows_watching_then_refuses_and_goes_back_without_flapping(box, pressure, told, caplog):
    with caplog.at_level(logging.INFO):
        for celsius in (81, 83, 100, 98, 90, 80, 77, 60):
            box.zone(0, "cpu-thermal", celsius)
            pressure.look()
    # 82 is 3 below the throttle, 99 is 6 below the shutdown; each is left at 95 % of it only
    assert told == [SLOW, REFUSE, SLOW, CALM]
    assert [record.message for record in caplog.records] == [
        "cpu-thermal 83 °C: watching slows down",
        "cpu-thermal 100 °C: new requests are refused",
        "cpu-thermal 90 °C: watching slows down",
        "all is well again",
    ]


def test_set_limits_win_and_zones_of_other_parts_do_not_count(box, told):
    box.zone(1, "battery", 120)
    box.zone(2, "GPU-therm", 71)
    pressure = Pressure(PressureSettings(slow_c=70), lambda pressure: told.append(pressure.level), box.root)
    pressure.look()
    assert pressure.level == SLOW


@pytest.mark.parametrize(
    ("kind", "percent", "level"),
    [("memory", 5, CALM), ("memory", 15, SLOW), ("memory", 60, REFUSE), ("cpu", 95, SLOW)],
)
def test_waiting_counts(box, pressure, kind, percent, level):
    box.psi(kind, percent)
    pressure.look()
    assert pressure.level == level


def test_memory_that_runs_out_counts_without_psi(box, pressure):
    (box.root / "proc/pressure/memory").unlink()
    box.memory(8_000_000, 100_000)
    pressure.look()
    assert pressure.level == REFUSE


def test_a_box_that_tells_nothing_is_calm(tmp_path):
    pressure = Pressure(PressureSettings(), lambda _: None, tmp_path / "empty")
    pressure.look()
    assert pressure.level == CALM
    assert pressure.readings == []


def test_a_refusal_says_busy_and_when_to_come_again(box, pressure):
    admission = Admission(2, 2)
    box.psi("memory", 60)
    pressure.look()
    admission.refusal = pressure.refusal
    assert admission.reserve("a") == "the box is too hot or short of memory"
    assert admission.retry_after_s() == REFUSAL_S
    box.psi("memory", 0)
    pressure.look()
    admission.refusal = pressure.refusal
    assert admission.reserve("a") is None
