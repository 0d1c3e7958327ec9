from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edge_runtime.daemon.queue import RequestQueue
from edge_runtime.daemon.requests import Reply, Request
from edge_runtime.daemon.worker import Worker
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import LimitsSettings

LIMITS = LimitsSettings(audio_s=2.0, image_pixels=1024)


class Ears:
    """Keeps what the worker says."""

    def __init__(self):
        self.answers = []
        self.deltas = []
        self.fail_once = False

    def answer(self, reply, body):
        if self.fail_once:
            self.fail_once = False
            raise RuntimeError("the line is dead")
        self.answers.append(body)

    def delta(self, reply, body):
        self.deltas.append(body)


class Rig:
    def __init__(self, model):
        self.queue = RequestQueue(10)
        self.ears = Ears()
        self.thread = threading.Thread(target=Worker(self.queue, model, LIMITS, self.ears).run, daemon=True)
        self.thread.start()

    def run(self, request):
        """The request's answer."""
        self.queue.put(request)
        return self.wait()

    def wait(self):
        deadline = time.monotonic() + 5
        while not self.ears.answers and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(self.ears.answers) == 1
        return self.ears.answers.pop()


@pytest.fixture
def rig(model):
    rig = Rig(model)
    yield rig
    model.gate.set()
    rig.queue.close()
    rig.thread.join(5)
    assert not rig.thread.is_alive()


def ask(text="one two three", name="a", media=(), **more):
    content = [*media, {"type": "text", "text": text}]
    return Request("ask", name, name, True, Reply("t"), [{"role": "user", "content": content}], **more)


def test_an_answer_has_what_the_contract_says(rig):
    body = rig.run(ask(options={"tools": []}))
    assert body["id"] == "a"
    assert body["text"] == "one two three "
    assert body["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": 2}
    assert body["timing"]["first_token_s"] == 0.1
    assert body["timing"]["total_s"] >= 0
    assert body["tool_calls"] == [{"name": "f", "arguments": {}}]
    assert "thoughts" not in body
    assert rig.ears.deltas == []


def test_a_stream_numbers_its_pieces(rig):
    body = rig.run(ask(stream=True))
    assert [delta["seq"] for delta in rig.ears.deltas] == [0, 1, 2]
    assert "".join(delta["text"] for delta in rig.ears.deltas) == body["text"]


def test_transcripts_carry_segments(rig, model, wav):
    body = rig.run(Request("transcribe", "a", "a", True, Reply("t"), audio=wav))
    assert body["text"] == "hello"
    assert body["segments"][0]["text"] == "hello"
    samples = model.calls[0][0]
    assert samples.dtype == np.float32
    assert samples.shape == (16000,)


def test_media_reach_the_model_decoded(rig, model, wav, png):
    rig.run(ask(media=[{"type": "image", "image": png}, {"type": "audio", "audio": wav}]))
    image, audio, _ = model.calls[0][0][0]["content"]
    assert image["image"].size == (32, 32)
    assert audio["audio"].shape == (16000,)


@pytest.mark.parametrize(
    ("item", "code"),
    [
        ({"type": "image", "image": b"no image"}, "unsupported_media"),
        ({"type": "audio", "audio": b"no sound"}, "unsupported_media"),
    ],
)
def test_undecodable_media_are_unsupported(rig, model, item, code):
    assert rig.run(ask(media=[item]))["error"]["code"] == code
    assert model.calls == []


def test_the_limits_hold(rig, make_wav, make_png):
    assert rig.run(ask(media=[{"type": "image", "image": make_png(40, 40)}]))["error"]["code"] == "too_large"
    long = Request("transcribe", "b", "b", True, Reply("t"), audio=make_wav(2.5))
    assert rig.run(long)["error"]["code"] == "too_large"


def test_a_users_mistake_keeps_its_words(rig, model):
    model.error = EdgeRuntimeError("prompt of 200 tokens; at most 128 fit")
    assert rig.run(ask())["error"] == {"code": "bad_request", "message": "prompt of 200 tokens; at most 128 fit"}


def test_the_unexpected_is_internal_and_the_worker_lives(rig, model):
    model.error = ZeroDivisionError("secret detail")
    error = rig.run(ask())["error"]
    assert error["code"] == "internal"
    assert "secret" not in error["message"]
    model.error = None
    assert rig.run(ask(name="b"))["text"]


def test_a_dead_line_does_not_stop_the_worker(rig):
    rig.ears.fail_once = True
    rig.queue.put(ask(name="lost"))
    assert rig.run(ask(name="b"))["id"] == "b"


def test_cancel_ends_the_running_request(rig, model):
    model.gate.clear()
    rig.queue.put(ask())
    assert model.begun.wait(5)
    rig.queue.cancel("a")
    assert rig.wait()["error"]["code"] == "cancelled"


def test_a_deadline_that_passes_while_waiting_or_running_expires_the_request(rig, model):
    assert rig.run(ask(deadline=time.monotonic() - 1))["error"]["code"] == "expired"
    assert model.calls == []
    model.gate.clear()
    assert rig.run(ask(name="b", deadline=time.monotonic() + 0.1))["error"]["code"] == "expired"
