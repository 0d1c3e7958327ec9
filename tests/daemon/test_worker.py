from __future__ import annotations

import base64
import itertools
import json
import threading
import time

import numpy as np
import pytest

from edge_runtime.daemon.admission import Admission, Ticket
from edge_runtime.daemon.requests import Parser, Reply
from edge_runtime.daemon.worker import Worker
from edge_runtime.engine.protocol import Piece, Usage
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import LimitsSettings, Settings

SETTINGS = Settings(limits=LimitsSettings(audio_s=2.0, image_pixels=1024, session_turns=4))
PARSER = Parser(SETTINGS, "fake", 128)


class Books:
    """Keeps payloads by their tickets, and what the worker says."""

    def __init__(self):
        self.payloads = {}
        self.answers = []
        self.deltas = []
        self.handed_back = []
        self.fail_once = False

    def begin(self, ticket):
        return PARSER.parse(ticket.kind, self.payloads[ticket.seq])

    def finish(self, ticket, body):
        if self.fail_once:
            self.fail_once = False
            raise RuntimeError("the books are burnt")
        self.answers.append(body)

    def hand_back(self, ticket):
        self.handed_back.append(ticket.id)

    def delta(self, ticket, body):
        self.deltas.append(body)


class Rig:
    def __init__(self, model):
        self.room = Admission(10, 10)
        self.books = Books()
        self.numbers = itertools.count(1)
        worker = Worker(self.room, model, SETTINGS.limits)
        self.thread = threading.Thread(target=worker.run, daemon=True)
        self.thread.start()

    def put(self, payload, kind="ask", name="a", client=""):
        seq = next(self.numbers)
        self.books.payloads[seq] = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        assert self.room.reserve(client) is None
        self.room.enter(Ticket(seq, name, kind, client, Reply("t"), self.books, received=time.monotonic()))

    def run(self, payload, **about):
        """The request's answer."""
        self.put(payload, **about)
        return self.wait()

    def wait(self):
        deadline = time.monotonic() + 20
        while not self.books.answers and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(self.books.answers) == 1
        return self.books.answers.pop()


@pytest.fixture
def rig(model):
    rig = Rig(model)
    yield rig
    model.gate.set()
    rig.room.close()
    rig.thread.join(20)
    assert not rig.thread.is_alive()


def words(messages):
    return [(message["role"], message["content"][-1]["text"]) for message in messages]


def test_an_answer_has_what_the_contract_says(rig):
    body = rig.run({"prompt": "one two three", "tools": []})
    assert body["id"] == "a"
    assert body["text"] == "one two three "
    assert body["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": 2}
    assert body["timing"]["first_token_s"] == 0.1
    assert body["timing"]["total_s"] >= 0
    assert body["timing"]["wait_s"] >= 0
    assert body["tool_calls"] == [{"name": "f", "arguments": {}}]
    assert "thoughts" not in body
    assert rig.books.deltas == []


def test_a_stream_numbers_its_pieces(rig):
    body = rig.run({"prompt": "one two three", "stream": True})
    assert [delta["seq"] for delta in rig.books.deltas] == [0, 1, 2]
    assert "".join(delta["text"] for delta in rig.books.deltas) == body["text"]


def test_transcripts_carry_segments(rig, model, wav):
    body = rig.run(wav, kind="transcribe")
    assert body["text"] == "hello"
    assert body["segments"][0]["text"] == "hello"
    samples = model.calls[0][0]
    assert samples.dtype == np.float32
    assert samples.shape == (16000,)


def test_media_reach_the_model_decoded(rig, model, wav, png):
    encoded = [base64.b64encode(data).decode() for data in (png, wav)]
    rig.run({"prompt": "x", "images": [encoded[0]], "audio": encoded[1]})
    image, audio, _ = model.calls[0][0][0]["content"]
    assert image["image"].size == (32, 32)
    assert audio["audio"].shape == (16000,)


@pytest.mark.parametrize("kind", ["transcribe", "describe"])
def test_undecodable_media_are_unsupported(rig, model, kind, wav, png):
    torn = {"transcribe": wav[:30], "describe": png[:60]}[kind]
    assert rig.run(torn, kind=kind)["error"]["code"] == "unsupported_media"
    assert model.calls == []


def test_a_recording_is_too_long_by_its_header(rig, model, make_wav):
    assert rig.run(make_wav(2.5), kind="transcribe")["error"]["code"] == "too_large"
    assert model.calls == []


def test_a_users_mistake_keeps_its_words(rig, model):
    model.error = EdgeRuntimeError("prompt of 200 tokens; at most 128 fit")
    error = rig.run({"prompt": "x"})["error"]
    assert error == {"code": "bad_request", "message": "prompt of 200 tokens; at most 128 fit"}


def test_the_unexpected_is_internal_and_the_worker_lives(rig, model):
    model.error = ZeroDivisionError("secret detail")
    error = rig.run({"prompt": "x"})["error"]
    assert error["code"] == "internal"
    assert "secret" not in error["message"]
    model.error = None
    assert rig.run({"prompt": "x"}, name="b")["text"]


def test_burnt_books_do_not_stop_the_worker(rig):
    rig.books.fail_once = True
    assert rig.run({"prompt": "x"})["error"]["code"] == "internal"
    assert rig.run({"prompt": "x"}, name="b")["text"] == "x "


def test_cancel_ends_the_running_request(rig, model):
    model.gate.clear()
    rig.put({"prompt": "x"})
    assert model.begun.wait(20)
    rig.room.cancel("a")
    assert rig.wait()["error"]["code"] == "cancelled"


def test_a_deadline_ends_the_running_request(rig, model):
    model.gate.clear()
    rig.put({"prompt": "x"})
    assert model.begun.wait(20)
    rig.room._running.ticket.deadline = 1.0
    rig.room.expire(2.0)
    assert rig.wait()["error"]["code"] == "expired"


def test_what_runs_when_the_daemon_stops_is_handed_back(rig, model):
    model.gate.clear()
    rig.put({"prompt": "x"}, name="kept")
    assert model.begun.wait(20)
    rig.room.stop_running()
    assert rig.room.wait_idle(20)
    assert rig.books.handed_back == ["kept"]
    assert rig.books.answers == []


def test_a_session_goes_on_where_it_was(rig, model):
    rig.run({"prompt": "one", "session": "s", "system": "Be kind."})
    rig.run({"prompt": "two", "session": "s"})
    assert words(model.calls[1][0]) == [
        ("system", "Be kind."),
        ("user", "one"),
        ("assistant", "one "),
        ("user", "two"),
    ]
    rig.run({"prompt": "three", "session": "s"}, client="another")
    assert words(model.calls[2][0]) == [("user", "three")]
    rig.run({"prompt": "four"})
    assert words(model.calls[3][0]) == [("user", "four")]


def test_a_conversation_that_does_not_fit_loses_its_older_half(rig, model):
    for name in "abcd":
        rig.run({"prompt": name, "session": "s"})
    real = model._chat

    def narrow(messages, **options):
        if len(messages) > 3:
            raise EdgeRuntimeError("the context is small", "too_large")
        return real(messages, **options)

    model._chat = narrow
    assert rig.run({"prompt": "e", "session": "s"})["text"] == "e "
    assert words(model.calls[-1][0]) == [("user", "d"), ("assistant", "d "), ("user", "e")]
    model._chat = lambda *_, **__: narrow([0] * 9)
    assert rig.run({"prompt": "f", "session": "s"})["error"]["code"] == "too_large"


def test_what_failed_or_called_a_tool_is_not_remembered(rig, model):
    model.error = EdgeRuntimeError("no")
    rig.run({"prompt": "bad", "session": "s"})
    model.error = None
    silent = Piece("", "tool_calls", Usage(prompt_tokens=1, completion_tokens=1), tool_calls=[{"name": "f"}])
    real, model._chat = model._chat, lambda *_, **__: iter([silent])
    rig.run({"prompt": "call", "session": "s"})
    model._chat = real
    rig.run({"prompt": "next", "session": "s"})
    assert words(model.calls[-1][0]) == [("user", "next")]
