"""Guesses ahead: the same tokens as without, however good or bad the guesses are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime import builtin
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.engine.sampling import Sampler
from edge_runtime.engine.speculative import REST, Guesses, Habits, Lookup, Pace, Times, decode

if TYPE_CHECKING:
    from collections.abc import Sequence


VOCAB = 12


class Toy:
    """A model whose next token hangs on the two before, with a memory that is written and taken back."""

    def __init__(self, seed: int = 0, sharpness: float = 3.0) -> None:
        self.table = np.random.default_rng(seed).normal(0, sharpness, (VOCAB, VOCAB, VOCAB)).astype(np.float32)
        self.read: list[int] = [0, 1]
        self.steps = 0

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        self.steps += 1
        rows = []
        for token in tokens:
            self.read.append(token)
            rows.append(self.table[self.read[-2], self.read[-1]])
        return np.stack(rows)

    def back(self, count: int) -> None:
        del self.read[-count:]


class Oracle:
    """Guesses right with some probability, `count` at a time."""

    def __init__(self, toy: Toy, share: float, count: int, seed: int) -> None:
        self.toy, self.share, self.count, self.random = toy, share, count, np.random.default_rng(seed)
        self.drafted = self.accepted = 0

    def propose(self, token: int) -> Sequence[int]:
        guesses: list[int] = []
        before = [*self.toy.read[-1:], token]
        for _ in range(self.count):
            likely = int(self.toy.table[before[-2], before[-1]].argmax())
            guesses.append(likely if self.random.random() < self.share else int(self.random.integers(VOCAB)))
            before.append(guesses[-1])
        self.drafted += len(guesses)
        return guesses

    def note(self, accepted: int, seconds: float) -> None:
        assert seconds >= 0
        self.accepted += accepted


def plain(count: int, **settings: Any) -> list[int]:
    toy, sampler = Toy(), Sampler(**settings)
    logits, tokens = toy.step([2]), []
    for _ in range(count):
        tokens.append(sampler.pick(logits[-1]))
        sampler.push(tokens[-1])
        logits = toy.step(tokens[-1:])
    return tokens


def guessed(count: int, share: float, most: int, **settings: Any) -> tuple[list[int], Toy, Oracle]:
    toy, sampler = Toy(), Sampler(**settings)
    oracle = Oracle(toy, share, most, 1)

    def pick(logits: np.ndarray) -> int:
        token = sampler.pick(logits)
        sampler.push(token)
        return token

    made = decode(toy.step([2]), toy.step, toy.back, pick, oracle)
    return [next(made) for _ in range(count)], toy, oracle


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.0, "seed": 5}, {"temperature": 0.8, "top_k": 5, "frequency_penalty": 0.3, "seed": 2}],
)
def test_the_tokens_are_those_of_plain_decoding(share, most, settings):
    tokens, toy, _ = guessed(200, share, most, **settings)
    assert tokens == plain(200, **settings)
    assert toy.read[3:203][: len(tokens) - 1] == tokens[: len(toy.read[3:203])][: len(tokens) - 1]


def test_right_guesses_spare_steps():
    tokens, toy, oracle = guessed(200, 1.0, 3)
    assert oracle.drafted - oracle.accepted <= 3  # those of the last step, whose tokens nobody asked for
    assert toy.steps <= 200 / 4 + 2
    assert len(tokens) == 200


def test_sampled_answers_have_the_right_distribution():
    toy = Toy(sharpness=1.0)
    expected = np.exp(toy.table[2, 3].astype(np.float64))
    expected /= expected.sum()
    counts = np.zeros(VOCAB)
    sampler = Sampler(1.0, seed=3)
    for seed in range(3000):
        model = Toy(sharpness=1.0)
        model.read = [0, 2]
        oracle = Oracle(model, 0.7, 2, seed)
        first = np.full((1, VOCAB), -100, np.float32)
        first[0, 3] = 0
        made = decode(first, model.step, model.back, sampler.pick, oracle)
        assert next(made) == 3
        counts[next(made)] += 1
    statistic = ((counts - 3000 * expected) ** 2 / (3000 * expected)).sum()
    assert statistic < 31.3  # chi square of 11 degrees of freedom, one in a thousand


def test_lookup_finds_what_followed():
    lookup = Lookup([1, 2, 3, 4, 5, 9, 1, 2])
    assert lookup.guess(3) == []
    lookup.push(3)
    assert lookup.guess(3) == [4, 5, 9]
    assert lookup.guess(1) == [4]
    lookup.push(8)
    assert lookup.guess(3) == []


def play(share: float, costs: Sequence[float], steps: int = 4000, extra: float = 0.0) -> float:
    """Tokens for the time of one plain step each, against plain decoding."""
    random = np.random.default_rng(1)
    times = Times()
    pace = Pace(times, most=len(costs) - 1, drafted=extra > 0)
    for _ in range(2 if extra else 0):
        times.note(0, extra)
    tokens = spent = 0.0
    for _ in range(steps):
        count = pace.length()
        accepted = 0
        while accepted < count and random.random() < share:
            accepted += 1
        times.note(count + 1, costs[count])
        if count:
            pace.note(count, accepted)
        tokens += accepted + 1
        spent += costs[count] + count * extra
    return tokens / spent


MEASURED = (1.0, 1.27, 1.78, 2.25)


@pytest.mark.parametrize(("share", "gain"), [(0.5, 1.12), (0.7, 1.28), (0.8, 1.36), (0.9, 1.45)])
def test_good_guesses_pay(share, gain):
    assert play(share, MEASURED) > gain


def test_a_dear_drafter_is_left_alone():
    assert play(0.6, MEASURED, extra=0.6) > 0.97
    assert play(0.9, MEASURED, extra=0.1) > 1.3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("costs", [MEASURED, (1.0, 2.0, 3.0, 4.0)])
def test_bad_guesses_cost_next_to_nothing(share, costs):
    assert play(share, costs) > 0.97


def test_guesses_that_lose_are_tried_again_later():
    times = Times()
    pace = Pace(times)
    drafted = [0, 0]
    for right in (False, True):
        for _ in range(10 * REST):
            count = pace.length()
            times.note(count + 1, MEASURED[min(count, 3)])
            if count:
                pace.note(count, count if right else 0)
                drafted[right] += count
    assert 0 < drafted[0] < 40
    assert drafted[1] > 40


def test_answers_learn_from_those_before():
    habits = Habits()
    drafted = []
    for _ in range(20):
        guesses = Guesses([1, 2, 3, 1, 2], lambda: 99, lambda *_: [9], habits=habits)
        for _ in range(8):  # short answers, of which a drafter guesses nothing right
            count = len(guesses.propose(7))
            guesses.note(0, MEASURED[count])
        drafted.append(guesses.drafted)
    assert sum(drafted[:10]) > 8
    assert sum(drafted[10:]) < 4


def test_no_guesses_beyond_the_context():
    left = iter([9, 2, 1, 0])
    habits = Habits()
    for _ in range(2):
        habits.times.note(1, 0.01)
    guesses = Guesses([1, 2, 3, 4, 5, 1, 2], lambda: next(left), habits=habits)
    assert len(guesses.propose(3)) > 0
    guesses.note(0, 0.01)
    for most in (1, 0, 0):
        guesses = Guesses([1, 2, 3, 4, 5, 1, 2], lambda: next(left), habits=habits)
        assert len(guesses.propose(3)) == most


QUESTIONS = ["Who are you?", "When does the gift shop open?", "What is 3 + 4?"]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0, seed=7)])
def test_the_built_in_model_says_the_same(engine: OnnxEngine, question, sampling):
    request = {"messages": [{"role": "user", "content": question}], "sampling": sampling}
    plain_pieces = list(engine.run(Request(**request, speculative=False)))
    pieces = list(engine.run(Request(**request, speculative=True)))
    assert "".join(piece.text for piece in pieces) == "".join(piece.text for piece in plain_pieces)
    usage = pieces[-1].usage
    assert usage is not None
    assert usage["drafted_tokens"] >= usage["accepted_tokens"] >= 0
    assert plain_pieces[-1].finish_reason == pieces[-1].finish_reason
    assert plain_pieces[-1].usage
    assert "drafted_tokens" not in plain_pieces[-1].usage


def test_a_model_with_a_drafter_guesses_unless_told_not_to(engine: OnnxEngine):
    def ask(model: OnnxEngine, **options: Any) -> tuple[str, Any]:
        request = Request([{"role": "user", "content": QUESTIONS[1]}], sampling=Sampling(0.0), **options)
        pieces = list(model.run(request))
        return "".join(piece.text for piece in pieces), pieces[-1].usage

    with contextlib.closing(OnnxEngine(builtin.bundle_path(), threads=1, context=512)) as drafting:
        text, usage = ask(drafting)
        plain_text, plain_usage = ask(drafting, speculative=False)
    assert usage["drafted_tokens"] >= 0  # how many pay hangs on the machine
    assert text == plain_text
    assert "drafted_tokens" not in plain_usage
    assert "drafted_tokens" not in ask(engine)[1]
