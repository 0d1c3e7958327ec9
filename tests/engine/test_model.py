from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import edge_runtime
from edge_runtime.engine.model import Model
from edge_runtime.engine.protocol import Sampling
from edge_runtime.errors import EdgeRuntimeError
from tests.engine.fake import FakeEngine

if TYPE_CHECKING:
    from pathlib import Path

RATE = 16_000
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


def test_a_schema_is_refused_at_once():
    with pytest.raises(EdgeRuntimeError, match="JSON schema"):
        Model(FakeEngine()).chat(QUESTION, schema={"type": "object"})


def test_transcribe_asks_for_each_piece():
    engine = FakeEngine("One.", "Two.")
    sound = np.random.default_rng(1).normal(0, 0.1, 40 * RATE).astype(np.float32)
    sound[27 * RATE : 28 * RATE] = 0
    transcript = Model(engine).transcribe(sound)
    assert transcript.text == "One. Two."
    first, second = transcript.segments
    assert (first["start"], first["text"], second["end"], second["text"]) == (0.0, "One.", 40.0, "Two.")
    assert 27 <= first["end"] == second["start"] <= 28
    content = engine.requests[0].messages[0]["content"]
    assert [item["type"] for item in content] == ["audio", "text"]
    assert engine.requests[0].sampling.temperature == 0


def test_silence_is_not_asked_about():
    engine = FakeEngine("Thank you for watching.")
    transcript = Model(engine).transcribe(np.zeros(61 * RATE, np.float32))
    assert (transcript.text, transcript.segments, engine.requests) == ("", [], [])


def test_translation():
    engine = FakeEngine("Good day.\nGerman: Guten Tag.")
    sound = np.random.default_rng(1).normal(0, 0.1, RATE).astype(np.float32)
    transcript = Model(engine).transcribe(sound, translate_to="German")
    assert (transcript.text, transcript.original) == ("Guten Tag.", "Good day.")


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
        (tmp_path / "model.gguf", "not GGUF files"),
        (tmp_path, "is no bundle"),
        (checkpoint, "make a bundle of it with edge-runtime export"),
    ]:
        with pytest.raises(EdgeRuntimeError, match=line) as error:
            edge_runtime.load(path)
        assert str(path) in str(error.value)
