from __future__ import annotations

import math

import numpy as np
import pytest

from edge_runtime.engine.sampling import Sampler
from edge_runtime.errors import EdgeRuntimeError

LOGITS = np.log(np.array([0.1, 0.5, 0.05, 0.35], np.float32))


def draws(sampler: Sampler, count: int = 4000) -> np.ndarray:
    return np.bincount([sampler.pick(LOGITS) for _ in range(count)], minlength=4) / count


def test_temperature_0_takes_the_likeliest():
    assert Sampler().pick(LOGITS) == 1
    assert Sampler(0, top_k=3, top_p=0.5, seed=1).pick(LOGITS) == 1


def test_temperature_1_follows_the_probabilities():
    assert np.allclose(draws(Sampler(1.0, seed=1)), [0.1, 0.5, 0.05, 0.35], atol=0.03)


def test_temperature_sharpens():
    sharp = np.array([0.1, 0.5, 0.05, 0.35]) ** 2
    assert np.allclose(draws(Sampler(0.5, seed=1)), sharp / sharp.sum(), atol=0.03)


def test_top_k():
    assert np.allclose(draws(Sampler(1.0, top_k=2, seed=1)), [0, 0.5 / 0.85, 0, 0.35 / 0.85], atol=0.03)
    assert draws(Sampler(1.0, top_k=1, seed=1), 50)[1] == 1


def test_top_p_keeps_the_token_that_crosses():
    assert np.allclose(draws(Sampler(1.0, top_p=0.6, seed=1)), [0, 0.5 / 0.85, 0, 0.35 / 0.85], atol=0.03)
    assert draws(Sampler(1.0, top_p=0.4, seed=1), 50)[1] == 1


def test_top_p_is_taken_after_top_k():
    # Of the two left, the likelier alone has 0.59.
    assert draws(Sampler(1.0, top_k=2, top_p=0.55, seed=1), 50)[1] == 1


def test_the_same_seed_gives_the_same_tokens():
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(1.0, seed=seed)
        return [sampler.pick(LOGITS) for _ in range(50)]

    assert tokens(7) == tokens(7) != tokens(8)
    assert tokens(None) != tokens(None)


def test_logits_stay_as_they_are():
    before = LOGITS.copy()
    Sampler(0.7, top_k=2, top_p=0.9, seed=1).pick(LOGITS)
    assert np.array_equal(LOGITS, before)


def test_extreme_temperatures():
    assert Sampler(1e-6, seed=1).pick(LOGITS) == 1
    assert np.allclose(draws(Sampler(1e6, seed=1)), 0.25, atol=0.03)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings(settings, name):
    with pytest.raises(EdgeRuntimeError, match=f"{name} is"):
        Sampler(**settings)
