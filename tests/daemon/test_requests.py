from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from edge_runtime import builtin
from edge_runtime.daemon.requests import DESCRIBE, PICTURE_RULE, Live, Parser, Request
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import LimitsSettings, ModelSettings, Settings
from edge_runtime.settings_senses import CameraSettings, MicrophoneSettings

SETTINGS = Settings(limits=LimitsSettings(payload_bytes=4096, images=2, image_pixels=1024))
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.fixture
def parser():
    return Parser(SETTINGS, "fake", 128)


@pytest.fixture
def ask(parser):
    return lambda **body: parser.parse("ask", json.dumps(body).encode())


def b64(data):
    return base64.b64encode(data).decode()


def test_ask_becomes_a_chat_with_media_before_text(ask, png, make_wav):
    wav = make_wav(0.05)
    request = ask(id="7", prompt="And?", system="Be kind.", images=[b64(png)], audio=b64(wav))
    assert request.messages == [
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": png},
                {"type": "audio", "audio": wav},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    assert (request.id, request.spoken, request.seen) == ("7", True, True)


def test_options_go_to_the_model_and_the_rest_stays_here(ask):
    request = ask(
        prompt="x",
        max_tokens=5,
        temperature=0,
        seed=1,
        tools=TOOLS,
        stream=True,
        priority=-2,
        session="s",
        deadline_s=3,
    )
    assert request.options == {"max_tokens": 5, "temperature": 0, "seed": 1, "tools": TOOLS}
    assert (request.stream, request.priority, request.session, request.deadline_s) == (True, -2, "s", 3)
    assert ask(prompt="x", session="").session is None
    assert not ask(prompt="x").spoken


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "prompt: missing"),
        ({"prompt": 3}, "prompt: must be a text"),
        ({"prompt": "x", "promt": "y"}, "unknown key 'promt'"),
        ({"prompt": "x", "id": "i" * 300}, "id: at most 256"),
        ({"prompt": "x", "id": "two\nlines"}, "id: at most 256 printable"),
        ({"prompt": "x", "id": 5}, "id: must be a text"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens: must be a whole number from 1"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens: must be a whole number"),
        ({"prompt": "x", "max_tokens": 10**400}, "max_tokens: must be a whole number"),
        ({"prompt": "x", "temperature": 1e999}, "not valid JSON"),
        ({"prompt": "x", "stream": 1}, "stream: must be true or false"),
        ({"prompt": "x", "deadline_s": "soon"}, "deadline_s: must be a number"),
        ({"prompt": "x", "session": 5}, "session: must be a text"),
        ({"prompt": "x", "session": "s" * 300}, "session: must be a text of at most"),
        ({"prompt": "x", "images": "aGk="}, "images: must be a list"),
        ({"prompt": "x", "images": ["not base64!"]}, r"images\[0\]: not valid base64"),
        ({"prompt": "x", "images": [""]}, r"images\[0\]: empty"),
        ({"prompt": "x", "images": [{"camera": "front"}]}, r"images\[0\]: wants .*; this daemon has no cameras"),
        ({"prompt": "x", "audio": {"microphone": "desk"}}, "audio: wants .*; this daemon has no microphones"),
        ({"prompt": "x", "audio": 5}, "audio: must be base64"),
    ],
)
def test_a_bad_ask_is_told_what_is_wrong(ask, body, says):
    with pytest.raises(EdgeRuntimeError, match=says) as caught:
        ask(**body)
    assert caught.value.code == "bad_request"


def test_media_are_looked_at_before_they_are_taken(ask, png, make_png):
    for body, code in [
        ({"images": [b64(b"GIF89a")]}, "unsupported_media"),
        ({"audio": b64(b"noise")}, "unsupported_media"),
        ({"images": [b64(make_png(40, 40))]}, "too_large"),
        ({"images": [b64(png)] * 3}, "too_large"),
        ({"images": ["A" * 8000]}, "too_large"),
    ]:
        with pytest.raises(EdgeRuntimeError) as caught:
            ask(prompt="x", **body)
        assert caught.value.code == code


def test_more_text_than_the_context_can_hold_is_refused_before_it_is_made_tokens():
    narrow = Parser(Settings(), "fake", 100)
    for body in ({"prompt": "x" * 80_000}, {"prompt": "x", "tools": [{"description": "x" * 80_000}]}):
        with pytest.raises(EdgeRuntimeError, match="more text than 100 tokens") as caught:
            narrow.parse("ask", json.dumps(body).encode())
        assert caught.value.code == "too_large"


def test_a_picture_cannot_call_tools_unless_somebody_said_so(parser, ask, png, make_wav):
    with pytest.raises(EdgeRuntimeError, match="vision_tools"):
        ask(prompt="x", images=[b64(png)], tools=TOOLS)
    assert ask(prompt="x", audio=b64(make_wav(0.05)), tools=TOOLS).options["tools"]
    allowed = Parser(replace(SETTINGS, model=ModelSettings(vision_tools=True)), "fake", 128)
    body = json.dumps({"prompt": "x", "images": [b64(png)], "tools": TOOLS}).encode()
    assert allowed.parse("ask", body).options["tools"]


def test_an_empty_id_is_none(ask):
    assert ask(prompt="x", id="").id is None
    assert ask(prompt="x", id=None).id is None


def test_a_large_payload_is_refused_unread(parser):
    with pytest.raises(EdgeRuntimeError) as caught:
        parser.parse("transcribe", b"x" * 4097)
    assert caught.value.code == "too_large"


def test_transcribe_takes_the_files_bytes(parser, make_wav):
    wav = make_wav(0.05)
    assert parser.parse("transcribe", wav) == Request("transcribe", audio=wav)


def test_describe_asks_what_the_model_has_learned(parser, png):
    system, user = parser.parse("describe", png).messages
    assert system["content"] == [{"type": "text", "text": PICTURE_RULE}]
    assert user["content"] == [{"type": "image", "image": png}, {"type": "text", "text": "Describe this image."}]
    (own,) = Parser(SETTINGS, builtin.NAME, 128).parse("describe", png).messages
    assert own["content"][1]["text"] == DESCRIBE[builtin.NAME] != DESCRIBE[""]
    told = replace(SETTINGS, model=ModelSettings(describe_prompt="Is the door open or closed?"))
    for name in ("fake", builtin.NAME):
        messages = Parser(told, name, 128).parse("describe", png).messages
        assert messages[-1]["content"][1]["text"] == "Is the door open or closed?"


@pytest.mark.parametrize(
    ("kind", "payload", "says"),
    [
        ("transcribe", b'{"microphone": "x"}', "this daemon has no microphones"),
        ("transcribe", b"", "transcribe wants the bytes"),
        ("transcribe", b"noise", "is not a WAV"),
        ("describe", b'{"camera": "front"}', "this daemon has no cameras"),
        ("describe", b'{"image": "front"}', "unknown key 'image'"),
        ("describe", b"", "describe wants the bytes"),
        ("describe", b"GIF89a", "is not a JPEG"),
    ],
)
def test_media_topics_refuse_what_they_do_not_take(parser, kind, payload, says):
    with pytest.raises(EdgeRuntimeError, match=says):
        parser.parse(kind, payload)


def test_the_id_of_a_bad_request_is_read_if_it_can_be(parser):
    assert parser.named(b'{"id": "a", "promt": "typo"}') == "a"
    for payload in (
        b'{"id": 5}',
        b'{"id": ""}',
        b"{",
        b"\x00",
        b"",
        b'{"id": "a\\n"}',
        b'{"id": "a"' + b" " * 5000 + b"}",
    ):
        assert parser.named(payload) is None


def test_cancel_names_an_id(parser):
    assert parser.cancelled(b'{"id": "a"}') == "a"
    for payload in (b"a", b"{}", b'{"id": 1}', b"[]", b"{" * 1000):
        with pytest.raises(EdgeRuntimeError):
            parser.cancelled(payload)


SENSES = Parser(
    Settings(
        microphones=(MicrophoneSettings("desk", language="German"),),
        cameras=(CameraSettings("front", "a.jpg"), CameraSettings("yard", "b.jpg")),
    ),
    "other",
    128,
)


def test_cameras_and_microphones_take_the_place_of_files():
    asked = SENSES.parse("ask", b'{"images": [{"camera": "yard"}], "audio": {"microphone": "desk", "seconds": 3}}')
    image, audio = asked.messages[0]["content"]
    assert image["image"] == Live("yard")
    assert audio["audio"] == asked.listens == Live("desk", 3)
    assert asked.aloud == "desk"
    assert asked.spoken
    described = SENSES.parse("describe", b'{"id": "7", "camera": "front", "prompt": "Who is it?"}')
    assert described.id == "7"
    assert [item.get("text", item.get("image")) for item in described.messages[-1]["content"]] == [
        Live("front"),
        "Who is it?",
    ]
    written = SENSES.parse("transcribe", b'{"microphone": "desk"}')
    assert written.audio == written.listens == Live("desk")
    assert written.options == {"language": "German"}
    assert SENSES.parse("ask", b'{"prompt": "x"}').listens is None


@pytest.mark.parametrize(
    ("kind", "payload", "says"),
    [
        ("ask", b'{"images": [{"camera": "roof"}]}', "there are front, yard"),
        ("ask", b'{"images": [{"camera": "yard", "x": 1}]}', "wants"),
        ("ask", b'{"audio": {"microphone": "desk", "seconds": 300}}', "seconds: must be a number"),
        ("ask", b'{"audio": {"microphone": ["desk"]}}', "there are desk"),
        ("describe", b'{"prompt": "x"}', "there are front, yard"),
        ("transcribe", b'{"id": "1"}', "there are desk"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(kind, payload, says):
    with pytest.raises(EdgeRuntimeError, match=says):
        SENSES.parse(kind, payload)
