"""How far work that takes long has come, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

_AFTER = 2.0  # seconds without a bar
_EVERY = 0.1  # seconds between two pictures of it
_WIDTH = 24
_LINE_AFTER = 10.0  # seconds without a line in a log; then the pauses grow with the time that has passed
_LINE_SHARE = 1 / 8
_WINDOW = 20.0  # seconds over which the speed is taken


class Bar:
    """Shows progress while work takes over two seconds; where stderr is no terminal, after ten.

    A service's journal, a log file and a pipe get whole lines, so few that an hour's work leaves some forty.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._started = clock()
        self._next = self._started + (_AFTER if self._terminal else _LINE_AFTER)
        self._samples: deque[tuple[float, int]] = deque()
        self._total = 0
        self._drawn = False

    def show(self, label: str, done: int, total: int) -> None:
        """`done` of `total`, in any unit; another total is other work, whose speed is not known yet."""
        now = self._clock()
        if total != self._total:
            self._samples.clear()
            self._total = total
        self._sample(now, done)
        if now < self._next:
            return
        percent, left = 100 * done // max(total, 1), self._left(now, done)
        rest = f", {_duration(left)} left" if left is not None else ""
        if self._terminal:
            filled = _WIDTH * done // max(total, 1)
            line = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {percent:3} % {label}{rest}"
            print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=self._stream, flush=True)
            self._drawn = True
            self._next = now + _EVERY
        else:
            print(f"edge-runtime: {percent} % {label}{rest}", file=self._stream, flush=True)
            self._next = now + max(_LINE_AFTER, _LINE_SHARE * (now - self._started))

    def note(self, text: str) -> None:
        """Says something in a line of its own."""
        self.clear()
        print(f"edge-runtime: {text}", file=self._stream, flush=True)

    def clear(self) -> None:
        """Removes the bar."""
        if self._drawn:
            print("\r\033[K", end="", file=self._stream, flush=True)
            self._drawn = False

    def _sample(self, now: float, done: int) -> None:
        if self._samples and now - self._samples[-1][0] < _EVERY:
            return
        self._samples.append((now, done))
        # The oldest that stays is the last one from before the window.
        while len(self._samples) > 2 and now - self._samples[1][0] >= _WINDOW:
            self._samples.popleft()

    def _left(self, now: float, done: int) -> float | None:
        """Seconds to go at the speed of the last seconds; None if nothing is known of it, or nothing is left."""
        then, before = self._samples[0]
        if done >= self._total or done <= before or now - then < _AFTER:
            return None
        return (self._total - done) * (now - then) / (done - before)


def _duration(seconds: float) -> str:
    """As people say it, no finer than can be foreseen."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
