from __future__ import annotations

import math

import numpy as np
import pytest

from edge_runtime.evaluation import divergence
from edge_runtime.evaluation.divergence import diverge, join


def _logits(*rows):
    return np.array(rows, np.float32)


def test_two_coins_give_the_divergence_that_the_formula_gives():
    # KL((1/2, 1/2) || (1/4, 3/4)) = ln(2) / 2 + ln(2/3) / 2
    found = diverge(_logits([0, 0], [5, 5]), _logits([0, math.log(3)], [7, 7]))
    assert found.kl[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-7)
    assert found.kl[1] == 0
    assert found.tokens == 2


def test_it_is_the_reference_that_weighs():
    sure, unsure = _logits([math.log(9), 0]), _logits([0, 0])
    assert diverge(sure, unsure).mean == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)
    assert diverge(unsure, sure).mean == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5), abs=1e-6)


def test_large_logits_and_a_constant_added_change_nothing():
    rng = np.random.default_rng(0)
    p, q = rng.normal(0, 4, (2, 5, 50)).astype(np.float32)
    shift = np.float32(2.0**14)  # exact for most of these; float32 sums of exponentials would overflow
    assert np.isfinite(diverge(p + shift, q).kl).all()
    assert diverge(p, q + 16).kl == pytest.approx(diverge(p, q).kl, rel=1e-4)


def test_equals_a_plain_float64_sum_however_it_is_cut(monkeypatch):
    rng = np.random.default_rng(1)
    p, q = rng.normal(0, 3, (2, 7, 40)).astype(np.float32)
    plain = []
    for a, b in zip(p.astype(np.float64), q.astype(np.float64), strict=True):
        pa, pb = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
        plain.append(float((pa * np.log(pa / pb)).sum()))
    assert diverge(p, q).kl == pytest.approx(plain, rel=1e-12)
    monkeypatch.setattr(divergence, "_VALUES", 80)  # two tokens at a time
    assert diverge(p, q).kl == pytest.approx(plain, rel=1e-12)


def test_never_below_zero():
    p = np.random.default_rng(2).normal(0, 5, (200, 30)).astype(np.float32)
    assert diverge(p, p + np.float32(3)).kl.min() >= 0


def test_same_top_counts_tokens():
    found = diverge(_logits([1, 2], [2, 1], [3, 0], [0, 1]), _logits([1, 9], [2, 3], [1, 0], [0, 2]))
    assert found.same_top.tolist() == [True, False, True, True]
    assert found.top1 == 0.75


def test_figures_of_known_values():
    parts = [divergence.Divergence(np.arange(start, start + 500.0), np.ones(500, bool)) for start in (0, 501)]
    whole = join([*parts, divergence.Divergence(np.array([500.0]), np.zeros(1, bool))])
    assert whole.tokens == 1001
    assert whole.mean == 500
    assert whole.error == pytest.approx(np.std(np.arange(1001), ddof=1) / math.sqrt(1001))
    assert (whole.quantile(0.99), whole.quantile(0.999)) == (990, 999)
    assert whole.to_dict() == {
        "tokens": 1001,
        "mean": 500.0,
        "error": whole.error,
        "p99": 990.0,
        "p999": 999.0,
        "max": 1000.0,
        "top1": 1000 / 1001,
    }


def test_one_token_has_no_error():
    assert diverge(_logits([0, 1]), _logits([1, 0])).error == 0
