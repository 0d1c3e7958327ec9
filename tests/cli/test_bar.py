from __future__ import annotations

import io
import re

from edge_runtime.cli._bar import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(bar: Bar, clock: Clock, seconds: float, rate: float, *, total: int, done: int = 0, label: str = "x") -> int:
    """Progress every tenth of a second at `rate` a second."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += 0.1
        done = min(total, done + round(rate / 10))
        bar.show(label, done, total)
    return done


def test_terminal_gets_a_bar_with_the_time_left_and_no_trace_of_it() -> None:
    stream, clock = Terminal(), Clock()
    bar = Bar(stream, clock)
    run(bar, clock, 1.9, 100, total=10_000)
    assert stream.getvalue() == ""
    run(bar, clock, 10, 100, total=10_000, done=190, label="decoder")
    pictures = stream.getvalue().split("\r\033[K")
    assert len(pictures) > 80
    assert re.fullmatch(r"\[##\.{22}\]  1[12] % decoder, (87|88|89) s left", pictures[-1])
    bar.clear()
    assert stream.getvalue().endswith("\r\033[K")


def test_pictures_are_drawn_ten_times_a_second_at_most() -> None:
    stream, clock = Terminal(), Clock()
    bar = Bar(stream, clock)
    for i in range(10_000):
        clock.now = i / 1000
        bar.show("x", i, 10_000)
    assert 70 < stream.getvalue().count("\r") <= 81


def test_time_left_follows_the_speed_of_the_last_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = Bar(stream, clock)
    done = run(bar, clock, 100, 10, total=100_000)
    run(bar, clock, 100, 500, total=100_000, done=done)
    last = stream.getvalue().splitlines()[-1]
    found = re.fullmatch(r"edge-runtime: (\d+) % x, (\d+) (s|min) left", last)
    assert found, last
    left = int(found[2]) * (60 if found[3] == "min" else 1)
    # 100,000 at 500 a second are 200 s; at the average of the whole run they would be nearly 400.
    assert abs(left - 2 * (100 - int(found[1]))) < 35


def test_log_gets_few_whole_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    bar = Bar(stream, clock)
    run(bar, clock, 9.8, 10, total=36_000)
    assert stream.getvalue() == ""
    run(bar, clock, 3590, 10, total=36_000, done=98)
    lines = stream.getvalue().splitlines()
    assert 10 < len(lines) < 50
    assert lines[0] == "edge-runtime: 0 % x, 60 min left"
    assert "\r" not in stream.getvalue()


def test_other_work_has_no_time_left_until_its_speed_is_known() -> None:
    stream, clock = Terminal(), Clock()
    bar = Bar(stream, clock)
    run(bar, clock, 30, 100, total=10_000)
    run(bar, clock, 1, 5, total=500, label="y")
    assert stream.getvalue().rpartition("\r\033[K")[2].endswith(" % y")
    run(bar, clock, 3, 10, total=100_000, label="z")
    assert stream.getvalue().endswith(" % z, 2 h 47 min left")


def test_note_stands_alone() -> None:
    stream, clock = Terminal(), Clock()
    bar = Bar(stream, clock)
    run(bar, clock, 3, 100, total=10_000)
    bar.note("the hub does not answer")
    assert stream.getvalue().endswith("\r\033[Kedge-runtime: the hub does not answer\n")


def test_nothing_to_do_is_no_error() -> None:
    stream, clock = Terminal(), Clock()
    bar = Bar(stream, clock)
    run(bar, clock, 3, 0, total=0)
    assert stream.getvalue().endswith("%" + " x")
