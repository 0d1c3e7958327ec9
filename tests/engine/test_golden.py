"""The fp32 bundle gives the answers that tests/make_golden.py recorded from transformers, without needing it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import runs

if TYPE_CHECKING:
    from edge_runtime.engine.onnx.engine import OnnxEngine

GOLDEN = Path(os.environ.get("EDGE_RUNTIME_TEST_GOLDEN") or Path(__file__).parent / "golden")
KINDS = ("text", "image", "audio", "mixed", "multi_turn", "tools")


@pytest.fixture(scope="module")
def golden(checkpoint: Path) -> dict[str, Any]:
    if not (GOLDEN / "golden.json").is_file():
        pytest.skip("nothing recorded: run tests/make_golden.py")
    recorded: dict[str, Any] = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert recorded["weights"] == weights, "recorded from another checkpoint: run tests/make_golden.py again"
    return recorded


def _with_media(message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("content"), list):
        return message
    content = [
        item if item["type"] == "text" else {**item, item["type"]: GOLDEN / item[item["type"]]}
        for item in message["content"]
    ]
    return {**message, "content": content}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_equal_the_recorded_ones(kind: str, golden: dict[str, Any], engine: OnnxEngine) -> None:
    from edge_runtime.engine.protocol import Request, Sampling

    cases = [case for case in golden["cases"] if case["kind"] == kind]
    assert cases
    for case in cases:
        prepared = engine.prepare(
            Request(
                messages=[_with_media(message) for message in case["messages"]],
                tools=case["tools"],
                think=case["think"],
                max_tokens=runs.MAX_TOKENS,
                sampling=Sampling(temperature=0.0),
            )
        )
        assert list(prepared.prompt.ids) == case["prompt"]
        logits = runs.first_logits(engine, prepared)
        for token, value in case["top5"]:
            assert logits[token] == pytest.approx(value, abs=1e-3)
        assert runs.greedy(engine, prepared) == case["greedy"], case["text"]
