"""Work on the rows of a matrix, on all cores and in bounded memory."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from edge_runtime.bundle.checksums import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")


@dataclass(frozen=True)
class Pace:
    """How much is done at once. What is written does not depend on it."""

    workers: int = field(default_factory=cores)
    """Threads; numpy lets them run beside each other."""
    chunk_bytes: int = 16 << 20
    """Rows that a thread deals with at a time, as float32; its other arrays are in proportion."""


def map_rows(
    shape: tuple[int, int],
    work: Callable[[int, int], _T],
    pace: Pace,
    tick: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, _T]]:
    """Does `work` with all rows of a matrix, some at a time.

    Args:
        shape: Of the matrix: [N, K].
        work: Called with the first row and the one after the last, from several threads; reads the rows, and what it
            gives for one must not depend on the others.
        pace: Threads, and how many rows at a time. At most two results more than there are threads are
            begun and not yet taken.
        tick: Told after each result, in the caller's thread, how many values were dealt with.

    Yields:
        The first row and what `work` gave, in the order of the rows.
    """
    count, width = shape
    step = max(1, pace.chunk_bytes // (4 * max(width, 1)))
    runs = [(start, min(start + step, count)) for start in range(0, count, step)]

    def told(start: int, stop: int, result: _T) -> tuple[int, _T]:
        if tick:
            tick((stop - start) * width)
        return start, result

    if pace.workers == 1 or len(runs) == 1:
        for run in runs:
            yield told(*run, work(*run))
        return
    with ThreadPoolExecutor(pace.workers, "rows") as pool:
        ahead = deque(pool.submit(work, *run) for run in runs[: pace.workers + 1])
        try:
            for place, run in enumerate(runs):
                result = ahead.popleft().result()
                if place + pace.workers + 1 < len(runs):
                    ahead.append(pool.submit(work, *runs[place + pace.workers + 1]))
                yield told(*run, result)
        finally:
            pool.shutdown(cancel_futures=True)
