"""What the daemon counts, for Prometheus (text format 0.0.4). Knows no server: `/metrics` shows what `render` gives.

Counting is a dictionary's entry under a lock; what has a value at any time (a queue, a temperature) is asked for it
when somebody looks, and costs nothing else.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Labels = tuple[tuple[str, str], ...]

PREFIX = "edge_runtime_"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the histograms' buckets."""


class Counter:
    """A number that grows, for each combination of labels."""

    kind = "counter"

    def __init__(self) -> None:
        self._values: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float = 1.0, **labels: str) -> None:
        """Adds to the number of these labels; from any thread."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def samples(self) -> list[tuple[str, Labels, float]]:
        """Suffix of the name, labels and value of each line."""
        with self._lock:
            return [("", labels, value) for labels, value in self._values.items()]


class Histogram:
    """How long things took, for each combination of labels."""

    kind = "histogram"

    def __init__(self) -> None:
        self._values: dict[Labels, tuple[list[int], float]] = {}
        self._lock = threading.Lock()

    def add(self, seconds: float, **labels: str) -> None:
        """Notes one duration; from any thread."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            counts, total = self._values.get(key, ([0] * (len(SECONDS) + 1), 0.0))
            counts[bisect.bisect_left(SECONDS, seconds)] += 1
            self._values[key] = counts, total + seconds

    def samples(self) -> list[tuple[str, Labels, float]]:
        """Suffix of the name, labels and value of each line."""
        lines: list[tuple[str, Labels, float]] = []
        with self._lock:
            for labels, (counts, total) in self._values.items():
                below = 0
                for bound, count in zip((*map(str, SECONDS), "+Inf"), counts, strict=True):
                    below += count
                    lines.append(("_bucket", (*labels, ("le", bound)), below))
                lines += [("_sum", labels, total), ("_count", labels, below)]
        return lines


class Gauge:
    """What has a value now: asked for when somebody looks."""

    def __init__(self, read: Callable[[], Mapping[Labels, float] | float], kind: str) -> None:
        self.kind = kind
        self._read = read

    def samples(self) -> list[tuple[str, Labels, float]]:
        """Suffix of the name, labels and value of each line."""
        values = self._read()
        items = [((), values)] if isinstance(values, float) else values.items()
        return [("", labels, value) for labels, value in items]


class Registry:
    """All metrics of one daemon."""

    def __init__(self) -> None:
        self._metrics: dict[str, tuple[str, Counter | Histogram | Gauge]] = {}
        self.requests, self.tokens, self.responses = Counter(), Counter(), Counter()
        self.seconds, self.waiting, self.first_token = Histogram(), Histogram(), Histogram()
        self._metrics |= {
            "requests_total": ("Requests that have ended, by kind and outcome", self.requests),
            "request_seconds": ("From the start of the work to the final answer", self.seconds),
            "request_wait_seconds": ("From arrival to the start of the work", self.waiting),
            "first_token_seconds": ("From the start of the work to the first token", self.first_token),
            "http_responses_total": ("Answers of the HTTP server, by status", self.responses),
            "tokens_total": ("Tokens read (prompt) and written (completion)", self.tokens),
        }
        began = time.time()
        self.gauge("process_start_time_seconds", "Unix time of the start", lambda: began)
        self.gauge("process_resident_memory_bytes", "Memory in use", _resident)
        self.gauge("process_cpu_seconds_total", "Computing time", lambda: float(sum(os.times()[:2])), kind="counter")
        self.gauge("process_open_fds", "Open files and sockets", _open_files)
        self.gauge("process_threads", "Threads", lambda: float(threading.active_count()))

    def gauge(
        self, name: str, says: str, read: Callable[[], Mapping[Labels, float] | float], *, kind: str = "gauge"
    ) -> None:
        """Shows one value more.

        Args:
            name: Of the metric, without the prefix.
            says: What it is.
            read: Its value, or one for each combination of labels; from any thread, returns at once.
            kind: `gauge` or `counter`.
        """
        self._metrics[name] = says, Gauge(read, kind)

    def ended(self, kind: str, outcome: str, timing: Mapping[str, float] | None = None) -> None:
        """Counts a request that has come to its end.

        Args:
            kind: `ask`, `transcribe` or `describe`.
            outcome: `ok`, or the error's code.
            timing: Of its answer, in seconds, as far as known: `total_s`, `wait_s`, `first_token_s`.
        """
        self.requests.add(kind=kind, outcome=outcome)
        known = timing or {}
        for name, histogram in (
            ("total_s", self.seconds),
            ("wait_s", self.waiting),
            ("first_token_s", self.first_token),
        ):
            if name in known:
                histogram.add(known[name], kind=kind)

    def render(self) -> str:
        """All of it in Prometheus' text format."""
        lines: list[str] = []
        for name, (says, metric) in self._metrics.items():
            full = PREFIX + name
            lines += [f"# HELP {full} {says}.", f"# TYPE {full} {metric.kind}"]
            lines += [f"{full}{suffix}{_labels(labels)} {value:.10g}" for suffix, labels, value in metric.samples()]
        return "\n".join([*lines, ""])


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}" if labels else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _resident() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _open_files() -> float:
    try:
        return float(len(os.listdir("/proc/self/fd")) - 1)  # noqa: PTH208 - a list of names, one of them our own
    except OSError:
        return 0.0
