"""Answers as OpenAI gives them, over a real connection."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from edge_runtime.engine.protocol import Piece, Timing, Usage
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import LimitsSettings

QUESTION = {"messages": [{"role": "user", "content": "one two"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
URL = "/v1/chat/completions"


def events(answer):
    """The data of server-sent events; the last one must be the end."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def say(model, *pieces, **last):
    """Makes the model say something else."""
    end = {"finish_reason": "stop", "usage": Usage(prompt_tokens=3, completion_tokens=4), "thoughts": ""}
    timing = Timing(load_s=0.0, first_token_s=0.1, decode_tokens_per_s=10.0)

    def chat(messages, *, cancel, **options):
        model.calls.append((messages, options))
        yield from (piece if isinstance(piece, Piece) else Piece(piece) for piece in pieces)
        yield Piece("", **{**end, "timing": timing, **last})

    model._chat = chat


def test_a_whole_answer(http):
    answer = http.post(URL, json=QUESTION).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "fake"
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "refusal": None, "content": "one two "}
    assert (choice["finish_reason"], choice["index"], choice["logprobs"]) == ("stop", 0, None)


def test_an_answer_in_pieces(http):
    answer = http.post(URL, json=QUESTION | {"stream": True, "stream_options": {"include_usage": True}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(answer)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": "one "}, {"content": "two "}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 3)
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1


def test_thoughts_stand_apart(box, http):
    say(box.model, "yes", thoughts="hm")
    message = http.post(URL, json=QUESTION).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("yes", "hm")
    deltas = [chunk["choices"][0]["delta"] for chunk in events(http.post(URL, json=QUESTION | {"stream": True}))]
    assert "".join(delta.get("content", "") for delta in deltas) == "yes"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"


def test_thoughts_come_as_they_are_thought(box, http):
    say(box.model, Piece("", thought="h"), Piece("", thought="m"), "yes", thoughts="hm")
    asked = QUESTION | {"stream": True, "reasoning_effort": "low"}
    deltas = [chunk["choices"][0]["delta"] for chunk in events(http.post(URL, json=asked))]
    assert deltas == [
        {"role": "assistant", "reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "yes"},
        {},
    ]


def test_probabilities_come_with_their_tokens(box, http):
    one, two, three = ({"token": name, "logprob": -0.5, "bytes": [], "top_logprobs": []} for name in "abc")
    say(box.model, Piece("a", scored=[one]), Piece("b"), Piece("", scored=[two]), logprobs=[one, two, three])
    chunks = events(http.post(URL, json=QUESTION | {"logprobs": True, "stream": True}))
    given = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert given == [
        {"content": [one], "refusal": None},
        None,
        *({"content": [it], "refusal": None} for it in (two, three)),
    ]


def test_probabilities_and_cached_tokens(box, http):
    tokens = [{"token": "yes", "logprob": -0.5, "bytes": [121, 101, 115], "top_logprobs": []}]
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "cached_tokens": 2, "dropped_turns": 1}
    say(box.model, "yes", logprobs=tokens, usage=usage)
    answer = http.post(URL, json=QUESTION | {"logprobs": True}).json()
    assert answer["choices"][0]["logprobs"] == {"content": tokens, "refusal": None}
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    *_, end = events(http.post(URL, json=QUESTION | {"logprobs": True, "stream": True}))
    assert end["choices"][0]["logprobs"]["content"] == tokens


def test_tool_calls(box, http):
    calls = [{"name": "f", "arguments": {"a": "ü"}}, {"name": "f", "arguments": {}}]
    say(box.model, finish_reason="tool_calls", tool_calls=calls)
    asked = QUESTION | {"tools": [TOOL], "tool_choice": "required"}
    choice = http.post(URL, json=asked).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert [json.loads(call["function"]["arguments"]) for call in choice["message"]["tool_calls"]] == [{"a": "ü"}, {}]
    assert box.model.calls[0][1] == {"tools": [TOOL], "tool_choice": "required"}
    *_, made, end = events(http.post(URL, json=asked | {"stream": True}))
    assert [call["index"] for call in made["choices"][0]["delta"]["tool_calls"]] == [0, 1]
    assert made["choices"][0]["delta"]["role"] == "assistant"
    assert end["choices"][0]["finish_reason"] == "tool_calls"


def test_what_a_tool_said_reaches_the_model(box, http):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    history = [
        *QUESTION["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
        {"role": "user", "content": "thanks"},
    ]
    assert http.post(URL, json={"messages": history}).status_code == 200
    messages, _ = box.model.calls[0]
    assert messages[2] == {"role": "tool", "tool_call_id": "c", "content": "done"}


def send(box, **more):
    """A connection on which a question was asked and no answer is read."""
    body = json.dumps(QUESTION | more).encode()
    head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    line = socket.create_connection(box.server.address)
    line.sendall(f"{head}\r\n\r\n".encode() + body)
    return line


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_hangs_up_is_forgotten(box, http, stream):
    box.model.gate.clear()
    with send(box, stream=stream):
        assert box.model.begun.wait(20)
    assert box.admission.wait_idle(20)
    box.model.gate.set()
    assert http.post(URL, json=QUESTION).status_code == 200


def test_whoever_hangs_up_in_the_middle_of_a_stream_is_forgotten(box):
    stopped = threading.Event()

    def chat(messages, *, cancel, **options):
        yield Piece("one")
        stopped.set() if cancel.wait(20) else None
        raise EdgeRuntimeError("cancelled", "cancelled")

    box.model._chat = chat
    with box.client() as http, http.stream("POST", URL, json=QUESTION | {"stream": True}) as answer:
        assert "one" in next(answer.iter_text())
    assert stopped.wait(20)


def test_whoever_takes_no_answer_is_hung_up_on(start):
    box = start(body_s=1)
    stopped = threading.Event()

    def chat(messages, *, cancel, **options):
        while not cancel.wait(0.001):
            yield Piece("x" * 50_000)
        stopped.set()
        raise EdgeRuntimeError("cancelled", "cancelled")

    box.model._chat = chat
    with send(box, stream=True):
        assert stopped.wait(20)


def test_a_full_queue_is_said(start):
    box = start(limits=LimitsSettings(queue=2, per_client=2))
    box.model.gate.clear()
    answers = []

    def ask(user):
        with box.client() as http:
            answers.append(http.post(URL, json=QUESTION | {"user": user}).status_code)

    asking = [threading.Thread(target=ask, args=(name,)) for name in "abc"]
    with box.client() as http:
        for number, thread in enumerate(asking):
            thread.start()
            assert box.model.begun.wait(20)
            deadline = time.monotonic() + 20
            while len(box.admission._heap) < number and time.monotonic() < deadline:
                time.sleep(0.01)
        refused = http.post(URL, json=QUESTION)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) > 0
        assert http.post(URL, json=QUESTION | {"stream": True}).status_code == 429
        box.model.gate.set()
        for thread in asking:
            thread.join()
    assert answers == [200] * 3


def test_a_deadline(box, http):
    box.admission.on_enter = lambda: threading.Timer(0.2, lambda: box.admission.expire(time.monotonic() + 9)).start()
    box.model.gate.clear()
    late = http.post(URL, json=QUESTION | {"deadline_s": 5})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "expired")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EdgeRuntimeError("no such tool"), 400, "bad_request"),
        (
            EdgeRuntimeError("prompt and answer are 9 tokens, the context is 8", "too_large"),
            400,
            "context_length_exceeded",
        ),
        (EdgeRuntimeError("it lasts longer", "too_large"), 413, "too_large"),
        (EdgeRuntimeError("no sound", "unsupported_media"), 415, "unsupported_media"),
        (ValueError("secret"), 500, "internal"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_keep_their_status(box, http, error, status, code, stream):
    box.model.error = error
    answer = http.post(URL, json=QUESTION | {"stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "secret" not in answer.text


def test_an_error_in_the_middle_of_a_stream_is_told(box, http):
    def chat(messages, *, cancel, **options):
        yield Piece("one")
        time.sleep(0.05)
        raise EdgeRuntimeError("the rest is lost", "internal")

    box.model._chat = chat
    answer = http.post(URL, json=QUESTION | {"stream": True})
    last = [line for line in answer.text.split("\n\n") if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the rest is lost"
    assert "[DONE]" not in answer.text


def test_only_json_is_taken(http):
    form = http.post(URL, content=json.dumps(QUESTION), headers={"Content-Type": "text/plain"})
    assert form.status_code == 415


def test_models_by_other_names(start):
    box = start(model_names=("gpt-4o",))
    with box.client() as http:
        assert http.post(URL, json=QUESTION | {"model": "gpt-4o"}).status_code == 200
        refused = http.post(URL, json=QUESTION | {"model": "else"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_a_stream_that_waits_long_says_so(box, http, monkeypatch):
    monkeypatch.setattr("edge_runtime.daemon.http.streams.PATIENCE_S", 0.05)
    monkeypatch.setattr("edge_runtime.daemon.http.streams.COMMENT_S", 0.05)
    box.model.gate.clear()
    threading.Timer(0.5, box.model.gate.set).start()
    answer = http.post(URL, json=QUESTION | {"stream": True})
    assert answer.text.startswith(": waiting\n\n")
    assert len(events(answer)) == 3
