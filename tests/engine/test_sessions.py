"""Several requests at once, conversations that outgrow the context, sound that is still going on, other key types."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import edge_runtime
from edge_runtime import media
from edge_runtime.engine.model import Model
from edge_runtime.engine.onnx import engine as engine_module
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.onnx.prompts import without_oldest_turn
from edge_runtime.engine.onnx.seats import Turns
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.evaluation.divergence import diverge
from tests.engine import runs
from tests.engine.fake import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

VOICE = Path(edge_runtime.__file__).parent / "demo_assets" / "voice.wav"
LONG = "What time does the museum open? " * 80
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def double(fp32_bundle: Path) -> Iterator[OnnxEngine]:
    engine = OnnxEngine(fp32_bundle, threads=1, context=1024, sessions=2)
    yield engine
    engine.close()


def ask(words: str, **rest: Any) -> Request:
    return Request(messages=[{"role": "user", "content": words}], sampling=GREEDY, **rest)


def said(pieces: Any) -> str:
    return "".join(piece.text for piece in pieces)


def test_two_requests_by_turns_answer_as_if_alone(double: OnnxEngine, engine: OnnxEngine):
    questions = [LONG, "Who are you?", "What is in the tower? " * 30]
    expected = [said(engine.run(ask(words, max_tokens=12))) for words in questions]
    first, second = (double.run(ask(words, max_tokens=12)) for words in questions[:2])
    texts = ["", ""]
    order: list[int] = []
    running = {0: first, 1: second}
    while running:
        for number in list(running):
            piece = next(running[number], None)
            if piece is None:
                del running[number]
            else:
                texts[number] += piece.text
                order.append(number)
    assert texts == expected[:2]
    assert order[: 2 * 6] == [0, 1] * 6  # the short one was answered while the long one was still being read
    assert said(double.run(ask(questions[2], max_tokens=12))) == expected[2]


def test_a_long_prompt_is_read_in_smaller_steps_while_another_runs(double: OnnxEngine):
    with double._seats.take(np.array([1, 2, 3], np.int64)):
        prepared = double.prepare(ask("Is it far to the old harbour? " * 80))
        steps = len(list(double.prefill(prepared)))
    assert steps >= len(prepared.prompt.ids) // engine_module.SHARED_CHUNK
    one, two = np.array([5], np.int64), np.array([6], np.int64)
    with double._seats.take(one), double._seats.take(two), pytest.raises(EdgeRuntimeError) as error:
        next(double.run(ask("Hello")))
    assert error.value.code == "busy"


def test_threads_at_once(double: OnnxEngine, engine: OnnxEngine):
    questions = [f"What is number {number}? " * (3 + 5 * number) for number in range(4)]
    expected = [said(engine.run(ask(words, max_tokens=8))) for words in questions]
    found = [""] * 4

    def run(first: int) -> None:
        for number in (first, first + 1):
            found[number] = said(double.run(ask(questions[number], max_tokens=8)))

    threads = [threading.Thread(target=run, args=(first,)) for first in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_turns_are_taken_in_order():
    turns, order = Turns(), []
    waiting: list[threading.Thread] = []

    def work(number: int) -> None:
        with turns.turn():
            order.append(number)

    with turns.turn():
        for number in range(5):
            waiting.append(threading.Thread(target=work, args=(number,)))
            waiting[-1].start()
            while len(turns._waiting) < number + 2:
                pass
    for thread in waiting:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_cancelling_one_leaves_the_other(double: OnnxEngine, engine: OnnxEngine):
    cancel = threading.Event()
    first, second = (
        double.run(ask("How old is it? " * 80, cancel=cancel)),
        double.run(ask("Who are you?", max_tokens=8)),
    )
    next(first)
    next(second)
    cancel.set()
    with pytest.raises(EdgeRuntimeError, match="cancelled"):
        next(first)
    assert said(second) == said(engine.run(ask("Who are you?", max_tokens=8)))
    assert double._seats.busy == 0


def conversation(turns: int) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": "You are a guide."}]
    for number in range(turns):
        system.append({"role": "user", "content": f"Question {number}: " + "what is in the tower? " * 8})
        system.append({"role": "assistant", "content": f"Answer {number}: " + "a red lamp. " * 8})
    return system[:-1]


def test_oldest_turns_are_dropped_and_that_is_said(double: OnnxEngine, engine: OnnxEngine):
    messages = conversation(16)
    with pytest.raises(EdgeRuntimeError) as error:
        double.run(Request(messages, max_tokens=4))
    assert error.value.code == "too_large"
    pieces = list(double.run(Request(messages, max_tokens=4, overflow="drop_oldest_turns", sampling=GREEDY)))
    usage = pieces[-1].usage
    assert usage is not None
    dropped = usage["dropped_turns"]
    assert 0 < dropped < 15
    assert usage["prompt_tokens"] + 4 <= 1024
    kept = [messages[0], *messages[1 + 2 * dropped :]]
    assert said(pieces) == said(engine.run(Request(kept, max_tokens=4, sampling=GREEDY)))
    more = [messages[0], *messages[1 + 2 * (dropped - 1) :]]
    assert len(double._prompts.ready(Request(more[:-1] + more[-1:], overflow="drop_oldest_turns")).prompt.ids) <= 1024
    short = list(double.run(Request(conversation(1), max_tokens=2, overflow="drop_oldest_turns")))[-1].usage
    assert short is not None
    assert "dropped_turns" not in short


def test_a_last_question_that_is_too_long_is_refused(double: OnnxEngine):
    messages = [*conversation(2), {"role": "assistant", "content": "Yes."}, {"role": "user", "content": LONG * 5}]
    with pytest.raises(EdgeRuntimeError, match="the context is 1024") as error:
        double.run(Request(messages, overflow="drop_oldest_turns"))
    assert error.value.code == "too_large"


def test_turns_with_tools_go_as_a_whole():
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "user"]
    messages = [{"role": role, "content": str(number)} for number, role in enumerate(roles)]
    once = without_oldest_turn(messages)
    assert once is not None
    assert [message["content"] for message in once] == ["0", "5", "6", "7"]
    twice = without_oldest_turn(once)
    assert twice is not None
    assert [message["content"] for message in twice] == ["0", "7"]
    assert without_oldest_turn(twice) is None


def test_media_of_the_turns_that_stay(double: OnnxEngine):
    sounds = [np.random.default_rng(seed).normal(0, 0.1, 32_000).astype(np.float32) for seed in range(24)]
    messages: list[dict[str, Any]] = []
    for sound in sounds:
        messages += [{"role": "user", "content": [{"type": "audio", "audio": sound}]}]
        messages += [{"role": "assistant", "content": "Yes."}]
    ready = double._prompts.ready(Request(messages[:-1], max_tokens=8, overflow="drop_oldest_turns"))
    assert 0 < ready.dropped < 23
    expected = [double._encoders.prepare(edge_media(sound)).digest for sound in sounds[ready.dropped :]]
    assert [item.digest for item in ready.media] == expected


def edge_media(sound: Any) -> Any:
    from edge_runtime.gemma.chat import Media

    return Media("audio", sound)


@pytest.mark.parametrize("seconds", [0.04, 0.33, 1.0])
def test_listening_gives_what_the_whole_clip_gives(fp32_bundle: Path, engine: OnnxEngine, seconds: float):
    voice = media.load_audio(VOICE)
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    content = [{"type": "audio", "audio": voice}, {"type": "text", "text": "Write it down."}]
    expected = said(Model(engine).chat([{"role": "user", "content": content}], **options))
    step = int(seconds * 16_000)
    model = edge_runtime.load(fp32_bundle, threads=1)
    with model, model.listen("Write it down.", **options) as listening:
        for at in range(0, len(voice), step):
            listening.feed(voice[at : at + step])
        pieces = list(listening.finish())
    assert said(pieces) == expected
    usage = pieces[-1].usage
    assert usage is not None
    # All but what came last was read while the voice was still speaking.
    assert usage["cached_tokens"] > usage["prompt_tokens"] // 2


def test_another_request_may_run_while_somebody_speaks(fp32_bundle: Path, engine: OnnxEngine):
    voice = media.load_audio(VOICE)
    content = [{"type": "audio", "audio": voice}]
    expected = said(Model(engine).chat([{"role": "user", "content": content}], temperature=0, max_tokens=16))
    with edge_runtime.load(fp32_bundle, threads=1) as model, model.listen(temperature=0, max_tokens=16) as listening:
        half = len(voice) // 2
        listening.feed(voice[:half])
        other = said(model.chat([{"role": "user", "content": "Who are you?"}], temperature=0, max_tokens=8))
        listening.feed(voice[half:])
        assert said(listening.finish()) == expected
    assert other == said(engine.run(ask("Who are you?", max_tokens=8)))


def test_engines_that_cannot_listen_ask_at_the_end():
    fake = FakeEngine("Yes.")
    with Model(fake).listen("What?", system="Be short.") as listening:
        listening.feed(np.zeros(100, np.float32))
        listening.feed(np.ones(50, np.float32))
        assert said(listening.finish()) == "Yes."
    (request,) = fake.requests
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert len(request.messages[1]["content"][0]["audio"]) == 150
    with pytest.raises(EdgeRuntimeError, match="takes no audio"), Model(FakeEngine(max_audio_seconds=0)).listen():
        pass


@pytest.mark.parametrize(("kv_type", "limit"), [("fp16", 1e-6), ("int8", 2e-3)])
def test_other_kinds_of_keys_change_little(fp32_bundle: Path, engine: OnnxEngine, kv_type: str, limit: float):
    """KL divergence over the recorded answers' tokens, the whole vocabulary."""
    recorded = json.loads((Path(__file__).parent / "golden" / "golden.json").read_text(encoding="utf-8"))["cases"]
    other = OnnxEngine(fp32_bundle, threads=1, kv_type=kv_type)
    losses = []
    for case in [case for case in recorded if case["kind"] == "text" and not case["think"]][:6]:
        prepared = engine.prepare(Request(case["messages"], tools=case["tools"]))
        answer = runs.greedy(engine, prepared)
        first, second = (one.forcing.logits(prepared.prompt, [], answer) for one in (engine, other))
        losses.append(diverge(first, second).mean)
    other.close()
    print(f"\n{kv_type}: {np.mean(losses):.1e}")
    assert np.mean(losses) < limit
