from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.stops import StopStrings
from edge_runtime.errors import EdgeRuntimeError


def shown(stops: list[str], pieces: list[str]) -> str:
    found = StopStrings(stops)
    return "".join([*map(found.push, pieces), found.finish()])


def test_text_up_to_the_stop_string():
    stops = StopStrings(["END"])
    assert [stops.push(piece) for piece in ("abE", "N", "Dx", "y")] == ["ab", "", "", ""]
    assert stops.stopped
    assert stops.finish() == ""


def test_what_only_looks_like_one_comes_out_later():
    stops = StopStrings(["END"])
    assert [stops.push(piece) for piece in ("aEN", "Ex", "E")] == ["a", "ENEx", ""]
    assert stops.finish() == "E"
    assert not stops.stopped


def test_the_first_of_several_wins():
    assert shown(["b", "ab"], ["xaby"]) == "x"


def test_without_stop_strings_nothing_is_held_back():
    assert StopStrings([]).push("abc") == "abc"


@given(st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.lists(st.text("abc", max_size=4)))
def test_equals_looking_at_the_whole(stops, pieces):
    whole = "".join(pieces)
    ends = [whole.find(stop) for stop in stops if stop in whole]
    # Cut where the first stop string is complete: it is seen before one that begins earlier but ends later.
    done = min((whole.find(stop) + len(stop) for stop in stops if stop in whole), default=0)
    result = shown(stops, pieces)
    assert whole.startswith(result)
    if not ends:
        assert result == whole
    else:
        assert min(ends) <= len(result) < done


@pytest.mark.parametrize("stops", ["END", [""], [3]])
def test_bad_stop_strings(stops):
    with pytest.raises(EdgeRuntimeError, match="stop must be a list"):
        StopStrings(stops)
