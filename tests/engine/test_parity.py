"""The fp32 bundle answers as transformers does: the same tokens, and nearly the same logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.engine import runs

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.engine.onnx.engine import OnnxEngine
    from tests.engine.oracle import Oracle

PROMPTS = 50
KINDS = ("text", "image", "audio", "mixed", "multi_turn", "tools")

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    from tests.engine.oracle import Oracle

    return Oracle(checkpoint)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_equal_transformers(kind: str, engine: OnnxEngine, oracle: Oracle) -> None:
    from tests.engine.prompts import cases

    worst, different = 0.0, []
    lengths = []
    for number, case in enumerate(cases(kind, PROMPTS)):
        prompt, expected, logits = oracle.answer(case, runs.MAX_TOKENS)
        prepared = engine.prepare(runs.request(case))
        assert list(prepared.prompt.ids) == prompt, f"prompt {number}"
        worst = max(worst, float(np.abs(runs.first_logits(engine, prepared) - logits).max()))
        found = runs.greedy(engine, prepared)
        lengths.append(len(prompt))
        if found != expected:
            different.append((number, engine.tokenizer.decode(found), engine.tokenizer.decode(expected)))
    print(f"\n{kind}: {PROMPTS} prompts of {min(lengths)} to {max(lengths)} tokens, worst first-step logit {worst:.2e}")
    assert not different
    assert worst < 1e-3
