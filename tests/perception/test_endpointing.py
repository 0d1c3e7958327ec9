from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_runtime.perception.endpointing import Endpointer, EndpointOptions, blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

YES, NO = 0.9, 0.05


def changes(probabilities: list[float], **options: float) -> Sequence[tuple[int, str]]:
    ends = Endpointer(EndpointOptions(**options))
    found = [(number, change) for number, p in enumerate(probabilities) if (change := ends.feed(p))]
    return found[: 1 + next((n for n, (_, change) in enumerate(found) if change == "end"), len(found))]


def test_three_blocks_of_speech_make_a_beginning():
    assert changes([NO, YES, YES, YES]) == [(3, "begin")]
    assert changes([NO, YES, NO, YES, NO, NO, YES, NO]) == []


def test_a_click_now_and_then_is_no_beginning():
    assert changes([YES, YES, NO, NO, NO, NO] * 50) == []


def test_it_ends_after_the_pause_and_not_before():
    pause = blocks(0.7)
    assert changes([YES] * 10 + [NO] * (pause - 1) + [YES] * 3 + [NO] * pause) == [
        (2, "begin"),
        (10 + pause - 1 + 3 + pause - 1, "end"),
    ]


@pytest.mark.parametrize("pause_s", [0.3, 0.7, 1.5])
def test_the_pause_is_tunable(pause_s: float):
    (_, (at, change)) = changes([YES] * 10 + [NO] * 100, pause_s=pause_s)
    assert change == "end"
    assert (at - 9) * 0.032 == pytest.approx(pause_s, abs=0.02)


def test_a_probability_that_wavers_is_no_pause():
    assert changes([YES] * 5 + [0.4] * 100) == [(2, "begin")]
    assert changes([0.4] * 100) == []


def test_seconds_of_speech_and_pause_are_counted():
    ends = Endpointer(EndpointOptions())
    for p in [YES] * 20 + [NO] * 10:
        ends.feed(p)
    assert [ends.speech_s, ends.pause_s] == pytest.approx([20 * 0.032, 10 * 0.032])
    ends.reset()
    assert [ends.speech_s, ends.pause_s] == [0, 0]
