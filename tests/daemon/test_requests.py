from __future__ import annotations

import base64
import json

import pytest

from edge_runtime.daemon.requests import DESCRIBE_PROMPT, Envelope, Reply, identify, parse, parse_cancel
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import LimitsSettings

LIMITS = LimitsSettings(payload_bytes=4096)


def envelope(kind="ask", correlation=None, expiry_s=None, redelivered=False):
    return Envelope(kind, Reply("t/answer", correlation), 100.0, expiry_s, redelivered)


def ask(body, **about):
    return parse(json.dumps(body).encode(), envelope(**about), LIMITS)


def b64(data):
    return base64.b64encode(data).decode()


def test_ask_becomes_a_chat_with_media_before_text():
    request = ask({"id": "7", "prompt": "And?", "system": "Be kind.", "images": [b64(b"i")], "audio": b64(b"a")})
    assert request.messages == [
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": b"i"},
                {"type": "audio", "audio": b"a"},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    assert (request.id, request.once) == ("7", True)


def test_options_go_to_the_model_and_the_rest_stays_here():
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = ask(
        {"prompt": "x", "max_tokens": 5, "temperature": 0, "seed": 1, "tools": tools, "stream": True, "priority": -2}
    )
    assert request.options == {"max_tokens": 5, "temperature": 0, "seed": 1, "tools": tools}
    assert request.stream is True
    assert request.priority == -2


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "prompt: missing"),
        ({"prompt": 3}, "prompt: must be a text"),
        ({"prompt": "x", "promt": "y"}, "unknown key 'promt'"),
        ({"prompt": "x", "id": ""}, None),
        ({"prompt": "x", "id": "i" * 300}, "id: at most 256"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens: must be a whole number from 1"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens: must be a whole number"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature: must be a number"),
        ({"prompt": "x", "stream": 1}, "stream: must be true or false"),
        ({"prompt": "x", "deadline_s": "soon"}, "deadline_s: must be a number"),
        ({"prompt": "x", "images": "aGk="}, "images: must be a list"),
        ({"prompt": "x", "images": ["not base64!"]}, r"images\[0\]: not valid base64"),
        ({"prompt": "x", "images": [b64(b"i"), ""]}, r"images\[1\]: empty"),
        ({"prompt": "x", "images": [{"camera": "front"}]}, r"images\[0\]: this daemon has no cameras"),
        ({"prompt": "x", "audio": {"microphone": "desk"}}, "audio: this daemon has no microphones"),
        ({"prompt": "x", "audio": 5}, "audio: must be base64"),
        ({"prompt": "x", "session": "s"}, "session: this daemon keeps no sessions"),
        ([1], "must be a JSON object"),
    ],
)
def test_a_bad_ask_is_told_what_is_wrong(body, says):
    if says is None:
        assert ask(body).once is False  # an empty id is none
        return
    with pytest.raises(EdgeRuntimeError, match=says) as caught:
        ask(body)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff\xfe", b"[" * 4000])
def test_what_is_no_json_is_a_bad_request(payload):
    with pytest.raises(EdgeRuntimeError, match="valid JSON") as caught:
        parse(payload, envelope(), LIMITS)
    assert caught.value.code == "bad_request"


def test_a_large_payload_is_refused_unread():
    with pytest.raises(EdgeRuntimeError) as caught:
        parse(b"x" * 4097, envelope("transcribe"), LIMITS)
    assert caught.value.code == "too_large"


def test_transcribe_and_describe_take_the_files_bytes():
    assert parse(b"RIFF", envelope("transcribe"), LIMITS).audio == b"RIFF"
    content = parse(b"\x89PNG", envelope("describe"), LIMITS).messages[0]["content"]
    assert content == [{"type": "image", "image": b"\x89PNG"}, {"type": "text", "text": DESCRIBE_PROMPT}]


@pytest.mark.parametrize(
    ("kind", "payload", "says"),
    [
        ("transcribe", b'{"microphone": "x"}', "transcribe wants the bytes"),
        ("transcribe", b"", "transcribe wants the bytes"),
        ("describe", b'{"camera": "front"}', "this daemon has no cameras"),
        ("describe", b"", "describe wants the bytes"),
    ],
)
def test_media_topics_refuse_what_they_do_not_take(kind, payload, says):
    with pytest.raises(EdgeRuntimeError, match=says):
        parse(payload, envelope(kind), LIMITS)


@pytest.mark.parametrize(
    ("deadline_s", "expiry_s", "deadline"), [(None, None, None), (5, None, 105), (None, 3.0, 103), (5, 3.0, 103)]
)
def test_the_sooner_deadline_counts(deadline_s, expiry_s, deadline):
    body = {"prompt": "x"} | ({} if deadline_s is None else {"deadline_s": deadline_s})
    assert ask(body, expiry_s=expiry_s).deadline == deadline


def test_the_id_comes_from_json_then_correlation_then_chance():
    assert identify(b'{"id": "a"}', envelope(correlation=b"c"), LIMITS) == ("a", True)
    assert identify(b'{"id": 5}', envelope(correlation=b"c"), LIMITS) == ("c", False)
    assert identify(b"\x00", envelope(correlation=b"\x00\x01"), LIMITS)[0] != identify(b"\x00", envelope(), LIMITS)[0]


def test_only_an_id_or_the_brokers_word_makes_two_requests_one():
    assert ask({"id": "a", "prompt": "x"}).key == ask({"id": "a", "prompt": "y"}).key
    assert not ask({"prompt": "x"}, correlation=b"1").once
    first, second = ask({"prompt": "x"}, correlation=b"1"), ask({"prompt": "x"}, correlation=b"1", redelivered=True)
    assert second.once
    assert first.key == second.key
    assert first.key != ask({"prompt": "x"}, correlation=b"2", redelivered=True).key


def test_cancel_names_an_id():
    assert parse_cancel(b'{"id": "a"}') == "a"
    for payload in (b"a", b"{}", b'{"id": 1}'):
        with pytest.raises(EdgeRuntimeError):
            parse_cancel(payload)
