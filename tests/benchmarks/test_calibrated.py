from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import calibrated
from edge_runtime.builtin import heldout_path


def test_half_of_everything_is_half_with_certainty() -> None:
    base = np.random.default_rng(1).lognormal(-8, 3, (2, 200))
    assert calibrated.compared(base / 2, base, np.random.default_rng(0)) == (
        "means 0.50 [0.50, 0.50], geometric 0.50 [0.50, 0.50]"
    )


def test_what_differs_by_chance_only_has_an_interval_around_1() -> None:
    rng = np.random.default_rng(2)
    base, other = (rng.lognormal(-8, 1, (2, 400)) for _ in range(2))
    line = calibrated.compared(other, base, rng)
    for part in line.split("[")[1:]:
        low, high = part.split("]")[0].split(", ")
        assert float(low) < 1 < float(high)


@pytest.mark.slow
def test_the_whole_comparison(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["calibrated", str(heldout_path()), "--limit", "1", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", words)
    calibrated.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == list(calibrated.BASES)
    assert "nearest to nearest means 1.00 [1.00, 1.00]" in lines[-3]
