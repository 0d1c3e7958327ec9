"""What the owner's page shows: how the daemon is now, and how the last hour was."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import machine
from edge_runtime.daemon.watchdog import name_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.daemon.admission import Admission
    from edge_runtime.daemon.upkeep import Upkeep

LOOK_S = 10.0
POINTS = 360
"""Of each graph: an hour."""
ERRORS = 20
PARTS = ("weights", "tables", "activations", "towers", "kv", "prefix_cache")


class LastErrors(logging.Handler):
    """Keeps the newest warnings and errors. They never say what was asked or answered: the log does not."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: collections.deque[dict[str, Any]] = collections.deque(maxlen=ERRORS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one."""
        line = record.getMessage().partition("\n")[0][:300]
        self._kept.append({"at": round(record.created), "level": record.levelname.lower(), "says": line})

    def lines(self) -> list[dict[str, Any]]:
        """Newest first."""
        return list(self._kept)[::-1]


class Status:
    """Looks every ten seconds, in a thread of its own."""

    def __init__(self, upkeep: Upkeep, admission: Admission, about: Callable[[], dict[str, Any]]) -> None:
        """Args: what measures; what waits; what else is shown, such as the model and the devices, asked each time."""
        self._upkeep, self._admission, self._about = upkeep, admission, about
        self._points: collections.deque[dict[str, Any]] = collections.deque(maxlen=POINTS)
        self._errors = LastErrors()
        self._cpu = (time.monotonic(), sum(os.times()[:2]))
        self._ended = 0.0
        self._began = time.time()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Looks from now on."""
        logging.getLogger("edge_runtime").addHandler(self._errors)
        self.look()
        self._thread.start()

    def close(self) -> None:
        """Looks no more."""
        logging.getLogger("edge_runtime").removeHandler(self._errors)
        self._closed.set()

    def look(self) -> None:
        """Adds a point to each graph."""
        now, cpu = time.monotonic(), sum(os.times()[:2])
        passed = max(now - self._cpu[0], 1e-3)
        busy, self._cpu = 100 * (cpu - self._cpu[1]) / passed / (os.cpu_count() or 1), (now, cpu)
        ended = sum(value for _, _, value in self._upkeep.metrics.requests.samples())
        new, self._ended = ended - self._ended, ended
        heat = [each.value for each in self._upkeep.pressure.readings if each.unit == "°C"]
        self._points.append(
            {
                "at": round(time.time()),
                "memory": _used(),
                "cpu": round(min(busy, 100.0), 1),
                "requests": int(new),
                "waiting": self._admission.waiting,
                "celsius": round(max(heat), 1) if heat else None,
            }
        )

    def snapshot(self) -> dict[str, Any]:
        """All of it, for JSON."""
        pressure = self._upkeep.pressure
        outcomes: dict[str, int] = {}
        for _, labels, value in self._upkeep.metrics.requests.samples():
            outcome = dict(labels)["outcome"]
            outcomes[outcome] = outcomes.get(outcome, 0) + int(value)
        return {
            **self._about(),
            "now": round(time.time()),
            "began": round(self._began),
            "trouble": self._upkeep.watchdog.trouble(),
            "pressure": {"level": pressure.level, "readings": [dataclasses.asdict(each) for each in pressure.readings]},
            "used": _used(),
            "available": machine.memory().available,
            "waiting": self._admission.waiting,
            "running": int(self._admission.busy),
            "outcomes": outcomes,
            "errors": self._errors.lines(),
            "every_s": LOOK_S,
            "points": list(self._points),
        }

    def _run(self) -> None:
        name_thread("status")
        while not self._closed.wait(LOOK_S):
            self.look()


def planned(plan: Any) -> dict[str, int] | None:
    """A memory plan's parts in bytes; None: there is no plan."""
    if plan is None:
        return None
    return {"total": plan.total, **{part: size for part in PARTS if (size := getattr(plan, part, 0))}}


def _used() -> int:
    """Resident memory of this process and its children (llama.cpp's server is one), in bytes."""
    children: list[str] = []
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            children += file.read_text(encoding="ascii").split()
    pages = 0
    for process in ("self", *children):
        with contextlib.suppress(OSError):
            pages += int(Path("/proc", process, "statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
