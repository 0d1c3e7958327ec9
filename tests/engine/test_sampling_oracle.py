"""The distribution from which the sampler draws, against transformers' logits processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_runtime.engine.sampling import Sampler

pytestmark = pytest.mark.oracle

VOCAB = 300
PROMPT = [3, 5, 5, 9, 200]


def theirs(logits: np.ndarray, **settings: Any) -> np.ndarray:
    """Probabilities after transformers' processors, in the order in which `generate` applies them."""
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    chain = LogitsProcessorList()
    if penalty := settings.get("repetition_penalty"):
        chain.append(RepetitionPenaltyLogitsProcessor(penalty))
    chain.append(TemperatureLogitsWarper(settings["temperature"]))
    if top_k := settings.get("top_k"):
        chain.append(TopKLogitsWarper(top_k))
    if top_p := settings.get("top_p"):
        chain.append(TopPLogitsWarper(top_p))
    if min_p := settings.get("min_p"):
        chain.append(MinPLogitsWarper(min_p))
    scores = chain(torch.tensor([PROMPT]), torch.tensor(logits)[None])
    return np.asarray(scores.softmax(-1)[0].numpy())


class Sweep:
    """A random source that goes evenly through 0..1, so that counts are the distribution."""

    def __init__(self, count: int) -> None:
        self.values = iter((np.arange(count) + 0.5) / count)

    def random(self) -> float:
        return float(next(self.values))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.0, "top_k": 64, "top_p": 0.95},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 0.8, "top_p": 0.5},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.3},
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_distributions_are_those_of_transformers(settings, seed):
    logits = np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)
    sampler = Sampler(**settings, prompt=PROMPT)
    draws = 20_000
    sampler._random = Sweep(draws)  # type: ignore[assignment]
    drawn = np.bincount([sampler.pick(logits) for _ in range(draws)], minlength=VOCAB) / draws
    expected = theirs(logits, **settings)
    assert np.abs(drawn - expected).max() < 2 / draws + 1e-6
    assert np.array_equal(drawn > 0, expected > 1.0 / draws) or np.abs(drawn - expected).sum() < VOCAB / draws
