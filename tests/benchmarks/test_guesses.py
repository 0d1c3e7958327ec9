"""What guessing ahead is worth: worked out for made-up times, and measured for the built-in model."""

from __future__ import annotations

import json

import pytest

from benchmarks.guesses import MOST, answers, times, worth
from edge_runtime import builtin
from edge_runtime.engine.loading import load
from edge_runtime.engine.speculative import gain
from edge_runtime.evaluation.exchanges import read_exchanges

STEPS = (0.1, 0.125, 0.16, 0.2, 0.24, 0.28, 0.33, 0.36)


def test_gain():
    assert gain(0.8, 0, STEPS[0] / 0.1) == 1
    assert gain(0.8, 1, (STEPS[1] + 0.005) / 0.1) == pytest.approx(1.8 * 0.1 / 0.13)
    assert gain(1.0, 3, STEPS[3] / 0.1) == pytest.approx(2.0)


def test_what_follows_from_times():
    lines = worth(STEPS, 0.005)
    assert lines[1].split() == ["1.00", "1.25", "1.60", "2.00", "2.40", "2.80", "3.30", "3.60"]
    assert "one pays when more than 25% are right" in lines[2]
    assert "guesses of the drafter (5.00 ms each): one pays when more than 30% are right" in lines[8]
    assert lines[12] == "  80%: 1.44 times as fast with 2 guesses"
    assert len(worth(STEPS, None)) == 8


def test_the_built_in_model(tmp_path):
    steps, guess = times(builtin.bundle_path(), threads=1, context=40, rounds=2)
    assert len(steps) == MOST
    assert min(steps) > 0
    assert guess is not None
    case = {"messages": [{"role": "user", "content": "When does the gift shop open?"}], "answer": "At 10 am."}
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "cases.jsonl").write_text(json.dumps({**case, "group": "faq"}) + "\n")
    with load(builtin.bundle_path(), threads=1) as model:
        lines = answers(model, read_exchanges(tmp_path), 16)
    assert lines[0] == "1 answers, 0 of them different with guesses"
