from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import edge_runtime
from edge_runtime.engine.answer import Answer
from edge_runtime.engine.model import Model
from edge_runtime.engine.protocol import Piece, Sampling
from edge_runtime.errors import EdgeRuntimeError
from tests.engine.fake import FakeEngine
from tests.gemma import tiny
from tests.perception.sounds import silence, speech

if TYPE_CHECKING:
    from pathlib import Path

RATE = 16_000
TOKENIZER = tiny.tokenizer()
QUESTION = [{"role": "user", "content": "hi"}]


def test_chat_hands_everything_to_the_engine():
    engine = FakeEngine("Yes.")
    pieces = list(
        Model(engine).chat(QUESTION, max_tokens=5, temperature=0.5, top_k=3, top_p=0.9, seed=1, stop="x", think=True)
    )
    assert "".join(piece.text for piece in pieces) == "Yes."
    assert pieces[-1].finish_reason == "stop"
    request = engine.requests[0]
    assert request.messages == QUESTION
    assert (request.max_tokens, request.stop, request.think, request.raw) == (5, ["x"], True, None)
    assert request.sampling == Sampling(0.5, 3, 0.9, 1)


def test_complete_continues_text():
    engine = FakeEngine()
    list(Model(engine).complete("Once", stop=["a", "b"]))
    assert engine.requests[0].raw == "Once"
    assert engine.requests[0].stop == ["a", "b"]


def test_forms_tools_and_penalties_reach_the_engine():
    engine = FakeEngine()

    def measure(room: str) -> int:
        """Measures."""
        return len(room)

    list(
        Model(engine).chat(
            QUESTION,
            schema={"type": "object"},
            tools=[measure],
            tool_choice="required",
            thinking_budget=9,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=0.2,
            frequency_penalty=0.3,
            logit_bias={1: 2.0},
            logprobs=True,
            top_logprobs=3,
            video_tokens=70,
        )
    )
    request = engine.requests[0]
    assert request.schema == {"type": "object"}
    assert request.tools[0]["function"]["name"] == "measure"
    assert (request.tool_choice, request.thinking_budget, request.video_tokens) == ("required", 9, 70)
    assert (request.logprobs, request.top_logprobs) == (True, 3)
    assert request.sampling == Sampling(
        min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.3, logit_bias={1: 2.0}
    )
    list(Model(engine).chat(QUESTION, tools=[measure], tool_choice="none"))
    assert engine.requests[1].tools == ()


def test_transcribe_asks_for_each_piece():
    engine = FakeEngine("One.", "Two.")
    sentence = speech("Turn on the light in the kitchen.")
    told: list[str] = []
    transcript = Model(engine).transcribe(np.concatenate([sentence, silence(2), sentence]), on_text=told.append)
    assert transcript.text == "".join(told) == "One. Two."
    first, second = transcript.segments
    assert (first["text"], second["text"]) == ("One.", "Two.")
    assert first["start"] == pytest.approx(0, abs=0.2)
    assert second["start"] == pytest.approx(len(sentence) / RATE + 2, abs=0.5)
    content = engine.requests[0].messages[0]["content"]
    assert [item["type"] for item in content] == ["audio", "text"]
    assert engine.requests[0].sampling.temperature == 0


def test_translation():
    engine = FakeEngine("Good day.\nGerman: Guten Tag.")
    transcript = Model(engine).transcribe(speech("Good day to all of you."), translate_to="German")
    assert (transcript.text, transcript.original) == ("Guten Tag.", "Good day.")


def test_thoughts_never_leak_into_a_transcript():
    class Thinking(FakeEngine):
        def _pieces(self, answer):
            collected = Answer(TOKENIZER, [], ends=set(TOKENIZER.encode("<turn|>")), stop=(), max_tokens=99)
            for token in TOKENIZER.encode(answer):
                yield Piece(collected.push(token))
            yield Piece(collected.finish()[0], finish_reason="stop", thoughts=collected.parser.thoughts)

    engine = Thinking("<|channel>thought\nWho speaks<channel|>Hello<turn|>")
    assert Model(engine).transcribe(speech("Hello to all of you.")).text == "Hello"


def test_a_model_without_ears():
    with pytest.raises(EdgeRuntimeError, match="takes no audio"):
        Model(FakeEngine(max_audio_seconds=0)).transcribe(np.ones(RATE, np.float32))


def test_closes_with_the_block():
    engine = FakeEngine()
    with Model(engine) as model:
        assert model.info["name"] == "fake"
    assert engine.closed


def test_load_says_what_is_wrong(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    for path, line in [
        (tmp_path / "none", "no such folder"),
        (tmp_path / "file", "is a file; a model is a bundle folder"),
        (tmp_path, "is no bundle"),
        (checkpoint, "make a bundle of it with edge-runtime export"),
    ]:
        with pytest.raises(EdgeRuntimeError, match=line) as error:
            edge_runtime.load(path)
        assert str(path) in str(error.value)
