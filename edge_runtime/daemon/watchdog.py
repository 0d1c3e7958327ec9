"""Whether the daemon's loops still go round, told to systemd (sd_watchdog_enabled(3)) and to whoever asks.

Each loop beats a `Pulse` whenever it goes round: an idle one because it is poked, one at work between the pieces of
its work. A loop that did not beat since its last two pokes hangs; then systemd hears nothing more and kills the
process, which begins anew with all that was accepted. Rounds are counted and no clock is read: a process that was
stopped for an hour and goes on is not taken for one that hangs.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.daemon.notify import notify

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

# Where no watchdog waits for us, loops are looked at all the same, for /healthz.
DEFAULT_S = 180.0
# Looks within the time that systemd waits. The longest step of an engine may take `HUNG` of them.
ROUNDS = 4
HUNG = 2


class Pulse:
    """Counts how often a loop went round."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.beats = 0

    def beat(self) -> None:
        """Called by the loop's own thread."""
        if not self.beats:
            name_thread(self.name)
        self.beats += 1


class Beating(threading.Event):
    """An event that beats a pulse whenever somebody looks whether it is set: engines look between their steps."""

    def __init__(self, beat: Callable[[], None]) -> None:
        super().__init__()
        self._beat = beat

    def is_set(self) -> bool:
        """Whether it is set."""
        self._beat()
        return super().is_set()


class _Watched:
    def __init__(self, pulse: Pulse, poke: Callable[[], None]) -> None:
        self.pulse, self.poke = pulse, poke
        self.seen = -1
        self.missed = 0


class Watchdog:
    """Looks at the loops, in a thread of its own."""

    def __init__(self, timeout_s: float | None = None) -> None:
        """Args: seconds that systemd waits; None: what it says, else `DEFAULT_S`."""
        self._round_s = (timeout_s or _systemd_s() or DEFAULT_S) / ROUNDS
        self._watched: list[_Watched] = []
        self._closed = threading.Event()
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def watch(self, name: str, poke: Callable[[], None]) -> Pulse:
        """Watches one loop more, before `start`.

        Args:
            name: What it is called.
            poke: Makes it go round once if it waits; returns at once, from any thread.

        Returns:
            What the loop is to beat.
        """
        pulse = Pulse(name)
        self._watched.append(_Watched(pulse, poke))
        return pulse

    def start(self) -> None:
        """Looks from now on."""
        self._thread.start()

    def close(self) -> None:
        """Looks no more; the end of the daemon has limits of its own."""
        self._closed.set()

    def trouble(self) -> str | None:
        """Which loops hang; None: none."""
        names = [watched.pulse.name for watched in self._watched if watched.missed >= HUNG]
        return f"hung: {', '.join(names)}" if names else None

    def look(self) -> None:
        """One round."""
        for watched in self._watched:
            beats = watched.pulse.beats
            watched.missed = watched.missed + 1 if beats == watched.seen else 0
            watched.seen = beats
            watched.poke()
        trouble = self.trouble() or ""
        if not trouble:
            notify("WATCHDOG=1")
        if trouble != self._said:
            self._said = trouble
            if trouble:
                log.critical("%s for %.0f s", trouble, HUNG * self._round_s)
                faulthandler.dump_traceback()
            else:
                log.warning("all loops go round again")

    def _run(self) -> None:
        name_thread("watchdog")
        while not self._closed.wait(self._round_s):
            self.look()


def name_thread(name: str) -> None:
    """Gives this thread its name for `top -H` and `ps -L`; 15 bytes of it are kept."""
    try:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name, encoding="utf-8")
    except OSError:  # no procfs: then it has none
        return


def _systemd_s() -> float | None:
    """Seconds that systemd waits for our word; None: it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdigit() and int(text) else None
