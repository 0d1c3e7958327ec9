from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.bundle.checksums import PAGE, measure
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.follow import Follower

if TYPE_CHECKING:
    from pathlib import Path


def test_same_as_measuring_the_finished_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    rng = np.random.default_rng(0)
    with path.open("wb") as file, Follower(path, PAGE) as follower:
        for size in (10, 3 << 20, 0, (1 << 20) + 1, 5000, 2 << 20, 77):
            file.write(rng.bytes(size))
            file.flush()
            follower.upto(file.tell())
        found = follower.finish(file.tell())
    expected = measure(path, PAGE)
    assert found.entry == expected.entry
    assert (found.crcs == expected.crcs).all()


def test_nothing_beyond_the_given_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with path.open("w+b") as file, Follower(path) as follower:
        file.write(bytes(4 << 20))
        file.flush()
        follower.upto(2 << 20)
        follower._tasks[0].result()
        # What was not yet called final may still change.
        file.seek(3 << 20)
        file.write(b"changed")
        file.flush()
        found = follower.finish(4 << 20)
    assert found.entry == measure(path).entry


def test_file_that_was_cut_is_refused_and_the_thread_ends(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(5000))
    before = threading.active_count()
    with Follower(path) as follower, pytest.raises(EdgeRuntimeError, match="data ends before byte 6000"):
        follower.finish(6000)
    assert threading.active_count() == before


def test_closing_does_not_wait_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.truncate(64 << 30)  # a minute's work, were it not a hole that nobody reads
    started = time.monotonic()
    with Follower(path) as follower:
        follower.upto(64 << 30)
    assert time.monotonic() - started < 5
