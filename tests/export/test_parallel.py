from __future__ import annotations

import threading

import pytest

from edge_runtime.export.parallel import Pace, map_rows


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_few_are_under_way(workers: int) -> None:
    lock = threading.Lock()
    begun = taken = most = 0
    told: list[int] = []

    def work(start: int, stop: int) -> list[int]:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        return list(range(start, stop))

    rows: list[int] = []
    for start, part in map_rows((100, 10), work, Pace(workers, 4 * 10 * 3), told.append):
        assert start == len(rows)
        rows += part
        taken += 1
    assert rows == list(range(100))
    assert told == [30] * 33 + [10]
    assert most <= workers + 2


def test_rows_longer_than_a_chunk_go_one_by_one() -> None:
    assert [start for start, _ in map_rows((3, 1000), lambda *_: None, Pace(2, 10))] == [0, 1, 2]
    assert list(map_rows((0, 10), lambda *_: None, Pace(2, 10))) == []


def test_an_error_ends_the_work_and_leaves_no_thread() -> None:
    def work(start: int, _: int) -> None:
        if start == 5:
            raise OSError(5, "Input/output error")

    before = threading.active_count()
    with pytest.raises(OSError, match="Input/output"):
        list(map_rows((1000, 1), work, Pace(3, 4)))
    assert threading.active_count() == before
