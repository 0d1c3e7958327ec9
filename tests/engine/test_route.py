from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from edge_runtime.engine.protocol import Info, Piece, Request, Timing, Usage
from edge_runtime.engine.route import Route, Rules
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Generator

    from edge_runtime.errors import ErrorCode

IMAGE = {"type": "image", "image": b"x"}
USAGE = Usage(prompt_tokens=1, completion_tokens=1)
TIMING = Timing(load_s=0, first_token_s=0, decode_tokens_per_s=0)


class Parrot:
    """An engine that says its name, or fails."""

    def __init__(
        self, name: str, *, refuses: ErrorCode | None = None, fails: ErrorCode | None = None, after: str = ""
    ) -> None:
        self.info = Info(name=name, modalities=["text", "image"], context=100 if name == "small" else 1000)
        self.max_audio_seconds = 0.0 if name == "small" else 30.0
        self.closed = False
        self._refuses, self._fails, self._after = refuses, fails, after

    def run(self, request: Request) -> Generator[Piece, None, None]:
        if self._refuses:
            raise EdgeRuntimeError("no", self._refuses)
        return self._pieces()

    def _pieces(self) -> Generator[Piece, None, None]:
        if self._fails:
            if self._after:
                yield Piece(self._after)
            raise EdgeRuntimeError("lost", self._fails)
        yield Piece(self.info["name"])
        yield Piece("", finish_reason="stop", usage=USAGE, timing=TIMING)

    def close(self) -> None:
        self.closed = True


def _ask(route, text="hello", **options):
    pieces = list(route.run(Request(messages=[{"role": "user", "content": text}], **options)))
    return "".join(piece.text for piece in pieces), pieces[-1].note


def _route(larger, rules=None):
    route = Route(Parrot("small"), lambda: larger, rules or Rules())
    assert route.wait(5)
    return route


def test_the_small_model_answers_unless_the_larger_one_is_asked_for():
    route = _route(Parrot("large"))
    assert _ask(route) == ("small", None)
    assert _ask(route, large=True) == ("large", "answered by large")


@pytest.mark.parametrize(
    ("rules", "text", "who"),
    [
        (Rules(("always",)), "hi", "large"),
        (Rules(("modality",)), "hi", "small"),
        (Rules(("modality",)), [IMAGE, {"type": "text", "text": "?"}], "large"),
        (Rules(("modality",), modalities=("audio",)), [IMAGE], "small"),
        (Rules(("length",), tokens=10), "x" * 40, "small"),
        (Rules(("length",), tokens=10), "x" * 41, "large"),
        (Rules(("length", "modality"), tokens=10), [IMAGE], "large"),
    ],
)
def test_rules_say_what_goes_where(rules, text, who):
    assert _ask(_route(Parrot("large"), rules), text)[0] == who


def test_an_unknown_rule_is_refused():
    with pytest.raises(EdgeRuntimeError, match="'size' is no rule; there are always, modality"):
        Rules(("size",))


def test_where_the_larger_one_is_away_the_small_one_answers_and_says_so():
    def away():
        raise EdgeRuntimeError("nobody home", "internal")

    route = Route(Parrot("small"), away, Rules(("always",)))
    assert not route.wait(5)
    assert _ask(route) == ("small", "answered by small: the larger model is away (nobody home)")
    route.close()


@pytest.mark.parametrize("larger", [Parrot("large", refuses="busy"), Parrot("large", fails="internal")])
def test_one_that_fails_before_its_first_word_is_away(larger):
    text, note = _ask(_route(larger, Rules(("always",))))
    assert text == "small"
    assert "is away" in note


def test_one_that_fails_in_the_middle_is_an_error():
    with pytest.raises(EdgeRuntimeError, match="lost"):
        _ask(_route(Parrot("large", fails="internal", after="Once"), Rules(("always",))))


def test_what_is_wrong_with_a_request_is_nobody_s_absence():
    with pytest.raises(EdgeRuntimeError) as caught:
        _ask(_route(Parrot("large", refuses="too_large"), Rules(("always",))))
    assert caught.value.code == "too_large"


def test_one_that_still_loads_holds_up_no_end_and_is_closed_when_it_has_loaded(monkeypatch):
    monkeypatch.setattr("edge_runtime.engine.route.CLOSE_S", 0.01)
    larger, loaded, small = Parrot("large"), threading.Event(), Parrot("small")

    def load():
        loaded.wait()
        return larger

    route = Route(small, load, Rules())
    route.close()
    assert (small.closed, larger.closed) == (True, False)
    loaded.set()
    assert route.wait(5)
    assert larger.closed


def test_info_is_that_of_the_pair_and_both_are_closed():
    larger = Parrot("large")
    route = _route(larger)
    assert (route.info["name"], route.info["context"], route.max_audio_seconds) == ("small", 1000, 30.0)
    route.close()
    assert larger.closed
