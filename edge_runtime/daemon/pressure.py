"""How hard the box has it: temperatures, and who waits for memory or processor.

PSI is the kernel's (Documentation/accounting/psi.rst). First watching slows down, then new work is refused; nothing
dies.
"""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import machine
from edge_runtime.daemon.watchdog import name_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_runtime.settings import PressureSettings

log = logging.getLogger(__name__)

CALM, SLOW, REFUSE = 0, 1, 2
"""Levels: all is well; watching slows down; new work is refused as well."""
PACES = {CALM: 1.0, SLOW: 4.0, REFUSE: 16.0}
"""Times the interval between two looks of a camera."""
LOOK_S = 10.0
# A level is left only when the figure is this much below the one that led to it, so that it does not flap.
EASE = 0.95
# Zones of batteries, modems and the like say nothing about our work.
_ZONES = re.compile(r"cpu|gpu|soc|pkg|tj\b|tj-", re.IGNORECASE)
_THROTTLES = ("passive",)
_SHUTS_DOWN = ("hot", "critical")
# Degrees below the point where the kernel acts.
_BEFORE = 3.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One figure and the two limits that it has.

    Attributes:
        source: What it is of: `cpu-thermal`, `memory some`.
        value: Degrees Celsius, percent of the time that somebody waited, or megabytes.
        slow: Above this watching slows down; None: never.
        refuse: Above this new work is refused; None: never.
        unit: Of all three.
    """

    source: str
    value: float
    slow: float | None
    refuse: float | None
    unit: str

    def level(self, before: int) -> int:
        """The level that it means, if `before` was its level the last time."""
        for level, limit in ((REFUSE, self.refuse), (SLOW, self.slow)):
            if limit is not None and self.value > limit * (EASE if before >= level else 1.0):
                return level
        return CALM


class Pressure:
    """Looks at the box every ten seconds, in a thread of its own.

    Attributes:
        level: `CALM`, `SLOW` or `REFUSE`.
        readings: The newest figures.
    """

    def __init__(self, settings: PressureSettings, tell: Callable[[Pressure], None], root: Path = Path("/")) -> None:
        """Args: the limits; who hears of a new level, in the thread of the looking; where /proc and /sys are."""
        self.settings = settings
        self.level = CALM
        self.readings: list[Reading] = []
        self._levels: dict[str, int] = {}
        self._tell = tell
        self._root = root
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pressure", daemon=True)

    @property
    def pace(self) -> float:
        """Times the interval at which cameras are looked at."""
        return PACES[self.level]

    @property
    def refusal(self) -> str | None:
        """Why new work is refused; None: it is not."""
        return "the box is too hot or short of memory" if self.level == REFUSE else None

    def start(self) -> None:
        """Looks from now on."""
        self._thread.start()

    def close(self) -> None:
        """Looks no more."""
        self._closed.set()

    def look(self) -> None:
        """One look."""
        self.readings = [*_heat(self._root, self.settings), *_waiting(self._root, self.settings)]
        self.readings += _free_memory(self._root, self.settings)
        levels = {reading.source: reading.level(self._levels.get(reading.source, CALM)) for reading in self.readings}
        level = max(levels.values(), default=CALM)
        self._levels = levels
        if level == self.level:
            return
        worst = "; ".join(
            f"{reading.source} {reading.value:.0f} {reading.unit}"
            for reading in self.readings
            if level and levels[reading.source] == level
        )
        does = {CALM: "all is well again", SLOW: "watching slows down", REFUSE: "new requests are refused"}[level]
        log.log(logging.WARNING if level > self.level else logging.INFO, "%s%s", f"{worst}: " if worst else "", does)
        self.level = level
        self._tell(self)

    def _run(self) -> None:
        name_thread("pressure")
        while not self._closed.wait(LOOK_S):
            self.look()


def _heat(root: Path, settings: PressureSettings) -> Iterator[Reading]:
    """The temperatures of what computes, with the limits that are set, else those where the kernel acts."""
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name, celsius = _text(zone / "type"), _degrees(zone / "temp")
        if celsius is None or not _ZONES.search(name):
            continue
        trips = {
            _text(trip): degrees
            for trip in sorted(zone.glob("trip_point_*_type"), reverse=True)
            if (degrees := _degrees(trip.with_name(trip.name.replace("_type", "_temp")))) is not None and degrees > 40
        }
        throttles = next((trips[kind] for kind in _THROTTLES if kind in trips), None)
        shuts_down = next((trips[kind] for kind in _SHUTS_DOWN if kind in trips), None)
        slow = settings.slow_c or (throttles - _BEFORE if throttles else 80.0)
        refuse = settings.refuse_c or (shuts_down - 2 * _BEFORE if shuts_down else 95.0)
        yield Reading(name, celsius, min(slow, refuse), refuse, "°C")


def _waiting(root: Path, settings: PressureSettings) -> Iterator[Reading]:
    """PSI of the machine: percent of the last ten seconds in which some, or all, who had work waited."""
    for kind, refuse in (("memory", settings.memory_refuse_percent), ("cpu", None)):
        limit = settings.memory_slow_percent if kind == "memory" else settings.cpu_slow_percent
        match = re.search(r"some avg10=([\d.]+)", _text(root / "proc/pressure" / kind))
        if match:
            yield Reading(f"waiting for {kind}", float(match[1]), limit, refuse, "%")


def _free_memory(root: Path, settings: PressureSettings) -> Iterator[Reading]:
    """Used memory in percent of what there is, by the tightest limit; for kernels without PSI too."""
    try:
        memory = machine.memory(root / "proc", root / "sys/fs/cgroup")
    except (OSError, KeyError, ValueError):
        return
    used = 100.0 * (1 - memory.available / memory.total)
    yield Reading("memory in use", used, settings.used_slow_percent, settings.used_refuse_percent, "%")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _degrees(path: Path) -> float | None:
    text = _text(path)
    return int(text) / 1000 if re.fullmatch(r"-?\d+", text) else None
