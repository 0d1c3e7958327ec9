"""Teacher forcing: the engine reads an answer that somebody else wrote."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.engine.onnx import forcing
from edge_runtime.engine.protocol import Request
from edge_runtime.errors import EdgeRuntimeError
from tests.engine import runs
from tests.engine.test_golden import GOLDEN, _with_media

if TYPE_CHECKING:
    from edge_runtime.engine.onnx.engine import OnnxEngine

RECORDED = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["cases"]
PLAIN = [case for case in RECORDED if not case["think"]]


def _request(case: dict[str, Any]) -> Request:
    return Request(messages=[_with_media(m) for m in case["messages"]], tools=case["tools"], max_tokens=1)


def _answer(case: dict[str, Any]) -> dict[str, Any]:
    """The recorded answer as an assistant message."""
    text = case["text"]
    if not text.startswith("<|tool_call>"):
        return {"role": "assistant", "content": text.removesuffix("<turn|>")}
    name, rest = text.removeprefix("<|tool_call>call:").split("{", 1)
    pairs = [pair.split(":", 1) for pair in rest.split("}")[0].split(",")]
    arguments = {key: value.removeprefix('<|"|>').removesuffix('<|"|>') for key, value in pairs}
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


@pytest.mark.parametrize("kind", ["text", "image", "audio", "mixed", "tools"])
def test_answers_are_written_as_the_model_writes_them(kind: str, engine: OnnxEngine) -> None:
    cases = [case for case in PLAIN if case["kind"] == kind]
    assert cases
    for case in cases:
        assert list(engine.forcing.answer_ids(_request(case), _answer(case))) == case["greedy"], case["text"]


@pytest.mark.parametrize("kind", ["image", "audio", "multi_turn"])
def test_the_likeliest_tokens_are_the_greedy_answer(kind: str, engine: OnnxEngine) -> None:
    for case in [case for case in PLAIN if case["kind"] == kind][:3]:
        prepared = engine.prepare(_request(case))
        logits = engine.forcing.logits(prepared.prompt, engine.forcing.soft_tokens(prepared), case["greedy"])
        assert logits.shape == (len(case["greedy"]), 2048)
        assert logits.argmax(-1).tolist() == case["greedy"]


def test_one_by_one_gives_the_same_logits_as_all_at_once(engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in PLAIN if case["kind"] == "multi_turn" and len(case["prompt"]) > 700)
    answer = [5, 9, 700, 33, 6]
    prepared = engine.prepare(_request(case))
    alone = [runs.first_logits(engine, prepared)]
    for token in answer[:-1]:
        ids = np.array([token], np.int64)
        alone.append(engine._decoder.step(ids, engine._decoder.embed(ids))[0].copy())
    for chunk in (64, 7, 1000):  # parts of the prompt, the answer cut in two, all at once
        monkeypatch.setattr(forcing, "CHUNK", chunk)
        assert np.abs(engine.forcing.logits(prepared.prompt, [], answer) - np.stack(alone)).max() < 1e-4


def test_an_empty_answer_and_one_that_does_not_fit(engine: OnnxEngine) -> None:
    request = Request(messages=[{"role": "user", "content": "Hello"}], max_tokens=1)
    with pytest.raises(EdgeRuntimeError, match="the answer is empty"):
        engine.forcing.answer_ids(request, {"role": "assistant", "content": ""})
    with pytest.raises(EdgeRuntimeError, match="the context is 4096"):
        engine.forcing.logits(engine.prepare(request).prompt, [], [5] * 5000)
