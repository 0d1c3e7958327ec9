"""The built-in model through llama.cpp: the same answers as ours, and everything that an engine can be asked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import edge_runtime
from edge_runtime import media
from edge_runtime.engine.llama.load import Choices, open_gguf
from edge_runtime.engine.model import Model
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.errors import EdgeRuntimeError
from tests.engine.prompts import cases
from tests.engine.runs import request
from tests.videos import make_video

if TYPE_CHECKING:
    from edge_runtime.engine.protocol import Engine

pytestmark = pytest.mark.gguf

QUESTION = "What time does the museum open?"
ANSWER = "The museum opens at 9 am."
LONG = "word " * 1500 + "Tell me a story"
DEMO = Path(edge_runtime.__file__).parent / "demo_assets"
LIGHT = {
    "name": "set_light",
    "description": "Switch a light",
    "parameters": {
        "type": "object",
        "properties": {"room": {"type": "string"}, "state": {"type": "string"}},
        "required": ["room", "state"],
    },
}
CASES, SHARE = 20, 0.95
COUNTS = ("prompt_tokens", "completion_tokens")
NANO_BUDGET = 70
"""Soft tokens of a picture in the built-in model, which no GGUF can say."""


def _ask(engine: Engine, text: str = QUESTION, **options: Any) -> tuple[str, Any]:
    sampling = options.pop("sampling", Sampling(temperature=0))
    asked = Request(messages=[{"role": "user", "content": text}], sampling=sampling, **options)
    pieces = list(engine.run(asked))
    return "".join(piece.text for piece in pieces), pieces[-1]


def _watch(engine: Engine, path: Path, **options: Any) -> tuple[str, Any]:
    content = [{"type": "video", "video": path}, {"type": "text", "text": "What color is it?"}]
    asked = Request(messages=[{"role": "user", "content": content}], sampling=Sampling(temperature=0), **options)
    pieces = list(engine.run(asked))
    return "".join(piece.text for piece in pieces), pieces[-1]


def _answers(engine: Engine, kind: str) -> list[Any]:
    answers = []
    for case in cases(kind, CASES):
        pieces = list(engine.run(replace(request(case), image_tokens=NANO_BUDGET)))
        last: Any = pieces[-1]
        text, counts = "".join(piece.text for piece in pieces), [last.usage[name] for name in COUNTS]
        answers.append((text, last.tool_calls, last.thoughts, last.finish_reason, counts))
    return answers


@pytest.mark.parametrize("kind", ["text", "tools", "audio", "multi_turn"])
def test_answers_are_those_of_our_exact_bundle(engine, llama, kind):
    pairs = zip(_answers(engine, kind), _answers(llama, kind), strict=True)
    assert sum(ours == theirs for ours, theirs in pairs) >= SHARE * CASES


def test_pictures_differ_by_nothing_but_what_their_tokens_see(checkpoint, llama, tmp_path):
    """llama.cpp lets a picture's tokens see one another at this width; so does our bundle, if its config says so."""
    from edge_runtime.engine.onnx.engine import OnnxEngine
    from edge_runtime.export.pipeline import export_checkpoint

    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["use_bidirectional_attention"] = "vision"
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    export_checkpoint(copy, tmp_path / "bundle", recipe="fp32")
    ours = OnnxEngine(tmp_path / "bundle", threads=1)
    pairs = list(zip(_answers(ours, "image"), _answers(llama, "image"), strict=True))
    ours.close()
    assert sum(left == right for left, right in pairs) >= SHARE * CASES


def test_an_answer_comes_in_pieces_with_usage_and_timing(llama):
    text, last = _ask(llama)
    assert (text, last.finish_reason, last.usage["prompt_tokens"]) == (ANSWER, "stop", 16)
    assert last.timing["decode_tokens_per_s"] > 0
    assert llama.info == {"name": "nano", "modalities": ["text", "image", "audio"], "context": 4096}
    assert llama.memory.total > llama.memory.kv > 0


def test_limits_stops_and_seeds(llama):
    assert _ask(llama, max_tokens=3)[1].finish_reason == "length"
    assert _ask(llama, stop=[" at"])[0] == "The museum opens"
    warm = {"sampling": Sampling(temperature=3.0, seed=5), "max_tokens": 12}
    assert _ask(llama, "Tell me.", **warm)[0] == _ask(llama, "Tell me.", **warm)[0]


def test_tools_thoughts_and_logprobs(llama):
    text, last = _ask(llama, "Turn on the kitchen light.", tools=[LIGHT], think=True)
    assert (text, last.finish_reason) == ("", "tool_calls")
    assert last.tool_calls == [{"name": "set_light", "arguments": {"room": "kitchen", "state": "on"}}]
    assert "set_light" in last.thoughts
    entries = _ask(llama, logprobs=True, top_logprobs=2, max_tokens=2)[1].logprobs
    assert [(entry["token"], len(entry["top_logprobs"])) for entry in entries] == [("The", 2), (" museum", 2)]


@pytest.mark.parametrize("think", [False, True])
def test_an_answer_keeps_to_its_schema(llama, think):
    schema = {
        "type": "object",
        "properties": {"hour": {"type": "integer", "minimum": 0, "maximum": 23}},
        "required": ["hour"],
        "additionalProperties": False,
    }
    text, last = _ask(llama, schema=schema, think=think, max_tokens=120)
    assert last.finish_reason == "stop"
    assert 0 <= json.loads(text)["hour"] <= 23


def test_an_answer_is_one_of_a_choice_but_no_regular_expression(llama):
    assert _ask(llama, choice=["yes", "no"])[0] in {"yes", "no"}
    with pytest.raises(EdgeRuntimeError, match="regular expression"):
        _ask(llama, regex="a+")


def test_what_is_too_long_is_refused_or_shortened(llama):
    with pytest.raises(EdgeRuntimeError, match=r"prompt is \d+ tokens, the context is 4096") as caught:
        _ask(llama, "word " * 5000)
    assert caught.value.code == "too_large"
    asked = [{"role": "user", "content": "word " * 5000}, {"role": "assistant", "content": "Yes."}]
    messages = [*asked, {"role": "user", "content": QUESTION}]
    shortened = Request(messages=messages, sampling=Sampling(temperature=0), overflow="drop_oldest_turns")
    assert "".join(piece.text for piece in llama.run(shortened)) == ANSWER


def test_speech_is_written_down(llama):
    spoken = json.loads((DEMO / "demo.json").read_text(encoding="utf-8"))
    heard = Model(llama).transcribe(media.load_audio(DEMO / "voice.wav")).text
    assert heard.rstrip("?.")
    assert heard in json.dumps(spoken)


def test_a_video_is_looked_at_as_pictures_with_their_times(engine, llama, tmp_path):
    path = make_video(tmp_path / "a.mp4", 3, size=(640, 480))
    shown, last = _watch(llama, path)
    assert shown
    assert last.finish_reason in {"stop", "length"}
    theirs = _watch(engine, path)[1].usage["prompt_tokens"]
    assert abs(last.usage["prompt_tokens"] - theirs) < 10
    larger = _watch(llama, path, video_tokens=140)[1].usage["prompt_tokens"]
    assert larger - last.usage["prompt_tokens"] >= 3 * 50
    with pytest.raises(EdgeRuntimeError, match="tokens is 3"):
        _watch(llama, path, video_tokens=3)


def test_a_long_video_leaves_room_for_words(llama, tmp_path):
    path = make_video(tmp_path / "a.mp4", 60, fps=1, size=(64, 48))
    assert 3 * 280 < _watch(llama, path, video_tokens=280, max_tokens=1)[1].usage["prompt_tokens"] < 3500


@pytest.mark.parametrize("text", [LONG, "word " * 1800])
def test_cancelling_ends_the_request_and_frees_the_server(llama, text):
    cancel = threading.Event()
    sampling = Sampling(temperature=1.5, seed=3)
    asked = Request(messages=[{"role": "user", "content": text}], sampling=sampling, cancel=cancel)
    timer = threading.Timer(0.2, cancel.set)
    timer.start()
    with pytest.raises(EdgeRuntimeError) as caught:
        list(llama.run(asked))
    assert caught.value.code == "cancelled"
    assert _ask(llama)[0] == ANSWER


def test_an_abandoned_answer_frees_the_server(llama):
    pieces = llama.run(Request(messages=[{"role": "user", "content": LONG}]))
    next(pieces)
    with pytest.raises(EdgeRuntimeError, match="another request"):
        _ask(llama)
    pieces.close()
    assert _ask(llama)[0] == ANSWER


def test_experts_in_the_shape_of_26b_a4b_load_and_stream(tiny_moe):
    engine = open_gguf(tiny_moe, threads=1)
    try:
        pieces: list[Any] = list(engine.run(Request(raw="Once", max_tokens=8, sampling=Sampling(temperature=0))))
        assert sum(bool(piece.text) for piece in pieces) > 3
        assert (pieces[-1].usage["completion_tokens"], engine.info["modalities"]) == (8, ["text"])
        with pytest.raises(EdgeRuntimeError, match="takes no audio"):
            Model(engine).transcribe(DEMO / "voice.wav")
        with pytest.raises(EdgeRuntimeError, match="takes no video"):
            _watch(engine, DEMO / "voice.wav")
    finally:
        engine.close()


def test_a_drafter_changes_no_answer(nano_gguf):
    """The model drafts for itself: every token is right, and the answers are the same."""
    engine = open_gguf(nano_gguf, threads=1, choices=Choices(drafter=nano_gguf))
    try:
        assert _ask(engine)[0] == ANSWER
    finally:
        engine.close()


def test_a_real_base_model_continues_text_from_the_command_line(gemma3):
    command = [sys.executable, "-m", "edge_runtime", "ask", "--raw", "--model", str(gemma3)]
    command += ["--temperature", "0", "--max-tokens", "4", "The capital of France is Paris. The capital of Japan is"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().startswith("Tokyo")
