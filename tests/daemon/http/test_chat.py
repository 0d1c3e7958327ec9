"""What a body asks."""

from __future__ import annotations

import base64
import json

import pytest

from edge_runtime.daemon.http.chat import parse
from edge_runtime.daemon.http.problems import Problem
from edge_runtime.settings import LimitsSettings, ModelSettings, Settings

SETTINGS = Settings(limits=LimitsSettings(images=2, payload_bytes=300_000))
ASKED = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}


def question(messages=ASKED, *, settings=SETTINGS, context=128, **more):
    return parse(json.dumps({"messages": messages, **more}).encode(), settings, context)


def options(**more):
    return question(**more).request.options


def problem(messages=ASKED, **more):
    with pytest.raises(Problem) as caught:
        question(messages, **more)
    return caught.value


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def data_uri(data, kind="image/png"):
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def sound(data):
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def test_a_plain_question():
    asked = question(user="panel", model="m", stream=True, stream_options={"include_usage": True})
    assert asked.request.messages == [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert (asked.request.stream, asked.usage, asked.client, asked.model) == (True, True, "panel", "m")
    assert asked.request.options == {}


def test_pictures_and_sound_are_in_the_request(png, wav):
    request = question(user({"type": "text", "text": "see"}, data_uri(png), sound(wav))).request
    assert request.messages[0]["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image", "image": png},
        {"type": "audio", "audio": wav},
    ]
    assert request.seen
    assert request.spoken


@pytest.mark.parametrize(
    "url", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/x.png", "https://x/y.jpg", "data:text/html,x", ""]
)
def test_nothing_is_fetched_and_no_file_is_read(url):
    refused = problem(user({"type": "image_url", "image_url": {"url": url}}))
    assert refused.status == 400
    assert "data URI" in refused.body["error"]["message"]
    assert refused.body["error"]["param"] == "messages[0].content[0].image_url.url"


def test_media_are_limited_before_they_are_decoded(png, wav, make_png):
    assert problem(user(*[data_uri(png)] * 3)).status == 413
    assert problem(user(data_uri(b"not an image"))).status == 415
    assert problem(user(sound(b"not a sound"))).status == 415
    small = Settings(limits=LimitsSettings(image_pixels=1024))
    assert problem(user(data_uri(make_png(33, 32))), settings=small).status == 413
    assert problem(user({"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}})).status == 400


def test_a_history_with_tools_goes_through():
    call = {"id": "c1", "type": "function", "function": {"name": "light", "arguments": '{"on": true}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "it is "}, {"text": "on"}]},
        {"role": "assistant", "content": "It is on.", "reasoning_content": "said before", "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
    ]
    read = question(messages, tools=[TOOL]).request.messages
    assert [message["role"] for message in read] == ["developer", "user", "assistant", "tool", "assistant", "user"]
    assert read[2] == {"role": "assistant", "content": [], "tool_calls": [call]}
    assert read[3] == {"role": "tool", "tool_call_id": "c1", "content": "it is on"}
    assert read[4] == {"role": "assistant", "content": [{"type": "text", "text": "It is on."}]}


def test_options_reach_the_model():
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 7, "stop": "x", "max_tokens": 5}
    assert options(**given) == {**given, "stop": ["x"]}
    assert options(max_tokens=5, max_completion_tokens=6) == {"max_tokens": 6}
    assert options(logit_bias={"7": -100}, presence_penalty=1) == {"logit_bias": {7: -100}, "presence_penalty": 1}
    assert options(seed=-1) == {"seed": 2**63 - 1}
    assert options(stop=["a", "b"], n=1, store=True, never_heard_of=1) == {"stop": ["a", "b"]}
    assert options(logprobs=True, top_logprobs=3) == {"logprobs": True, "top_logprobs": 3}
    assert options(reasoning_effort="low") == {"think": True}
    assert options(reasoning_effort="none") == {}
    assert options(chat_template_kwargs={"enable_thinking": True}) == {"think": True}
    assert options(**dict.fromkeys(given)) == {}


def test_answers_to_a_schema():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert options(response_format=form) == {"schema": schema}
    assert options(response_format={"type": "json_object"}) == {"schema": {"type": "object"}}
    assert options(response_format={"type": "text"}) == {}


def test_tools_and_which_of_them():
    assert options(tools=[TOOL]) == {"tools": [TOOL]}
    assert options(tools=[TOOL], tool_choice="none") == {}
    assert options(tools=[TOOL], tool_choice="required") == {"tools": [TOOL], "tool_choice": "required"}
    named = {"type": "function", "function": {"name": "light"}}
    assert options(tools=[TOOL], tool_choice=named) == {"tools": [TOOL], "tool_choice": {"name": "light"}}
    assert options(tools=[]) == {}


def test_pictures_offer_no_tools_unless_the_owner_says_so(png):
    assert "vision_tools" in problem(user(data_uri(png)), tools=[TOOL]).body["error"]["message"]
    allowed = Settings(model=ModelSettings(vision_tools=True))
    assert options(messages=user(data_uri(png)), tools=[TOOL], settings=allowed) == {"tools": [TOOL]}


def test_a_prompt_that_no_context_holds_is_told_as_openai_tells_it():
    refused = problem([{"role": "user", "content": "x" * 100_000}], context=64)
    assert (refused.status, refused.body["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"n": 2}, "n"),
        ({"n": "x"}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"seed": True}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"logit_bias": {"x": 2}}, "logit_bias"),
        ({"logit_bias": {"1": 200}}, "logit_bias.1"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning_effort": "wild"}, "reasoning_effort"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"priority": 0.5}, "priority"),
    ],
)
def test_what_is_wrong_is_named(given, param):
    refused = problem(**given)
    assert refused.status == 400
    assert refused.body["error"]["param"] == param


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'{"messages": NaN}', b"\xff", b"[" * 1000])
def test_what_is_no_json_object_is_refused(payload):
    with pytest.raises(Problem) as caught:
        parse(payload, SETTINGS, 128)
    assert caught.value.status == 400
