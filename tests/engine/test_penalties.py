from __future__ import annotations

import math

import numpy as np
import pytest

from edge_runtime.engine.choosing import sampler_for
from edge_runtime.engine.protocol import Sampling
from edge_runtime.engine.sampling import Sampler, log_probabilities
from edge_runtime.errors import EdgeRuntimeError

LOGITS = np.array([2.0, -1.0, 0.5, 3.0], np.float32)


def after(*tokens: int, **settings) -> np.ndarray:
    sampler = Sampler(1.0, **settings)
    for token in tokens:
        sampler.push(token)
    return sampler.adjusted(LOGITS)


def test_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones():
    assert np.allclose(after(3, prompt=[0, 1], repetition_penalty=2.0), [1.0, -2.0, 0.5, 1.5])


def test_presence_and_frequency_penalties_look_at_the_answer_only():
    assert np.allclose(after(3, 3, 2, prompt=[0], presence_penalty=0.5), [2.0, -1.0, 0.0, 2.5])
    assert np.allclose(after(3, 3, 2, prompt=[0], frequency_penalty=0.5), [2.0, -1.0, 0.0, 2.0])
    assert np.allclose(after(3, 3, presence_penalty=0.5, frequency_penalty=0.25), [2.0, -1.0, 0.5, 2.0])


def test_logit_bias():
    assert np.allclose(after(logit_bias={1: 100, 3: -100, 9: 5}), [2.0, 99.0, 0.5, -97.0])
    assert Sampler(logit_bias={3: -100}).pick(LOGITS) == 0


def test_without_any_of_them_logits_are_not_even_copied():
    assert after(3, 3) is LOGITS


def test_min_p_is_a_share_of_the_likeliest():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    sampler = Sampler(1.0, min_p=0.25, seed=1)
    drawn = np.bincount([sampler.pick(np.log(probabilities)) for _ in range(4000)], minlength=4) / 4000
    assert np.allclose(drawn, np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03)
    assert drawn[3] == 0


def test_only_what_is_allowed_is_chosen_with_the_probabilities_it_has_among_itself():
    allowed = np.array([True, False, True, False])
    assert Sampler().pick(LOGITS, allowed) == 0
    sampler = Sampler(1.0, top_k=3, seed=1)
    drawn = np.bincount([sampler.pick(LOGITS, allowed) for _ in range(4000)], minlength=4) / 4000
    share = 1 / (1 + math.exp(-1.5))
    assert np.allclose(drawn, [share, 0, 1 - share, 0], atol=0.03)


def test_log_probabilities_are_the_models_own():
    chosen, best = log_probabilities(LOGITS, 2, 2)
    exact = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    assert chosen == pytest.approx(exact[2])
    assert [token for token, _ in best] == [3, 0]
    assert [value for _, value in best] == pytest.approx([exact[3], exact[0]])
    assert log_probabilities(LOGITS, 2, 0)[1] == []


def test_defaults_come_from_the_bundle_then_from_gemmas_makers():
    def settings(defaults, **wanted):
        made = sampler_for(Sampling(**wanted), defaults)
        return made._temperature, made._top_k, made._top_p, made._repetition

    assert settings({"do_sample": True}) == (1.0, 64, 0.95, 1.0)
    assert settings({}) == (0.0, 64, 0.95, 1.0)
    bundle = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.5, "repetition_penalty": 1.1}
    assert settings(bundle) == (0.7, 5, 0.5, 1.1)
    assert settings(bundle, temperature=0.2, top_k=0, top_p=1.0) == (0.2, 0, 1.0, 1.1)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"logit_bias": {1: 101}}, "logit_bias of 1"),
    ],
)
def test_bad_settings(settings, name):
    with pytest.raises(EdgeRuntimeError, match=f"{name} is"):
        Sampler(**settings)
