"""The real command with the built-in model, asked by OpenAI's client and by Hugging Face's."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from websockets.sync.client import connect

import edge_runtime

ASSETS = Path(edge_runtime.__file__).parent / "demo_assets"
VOICE = ASSETS / "voice.wav"
SIGN = base64.b64encode((ASSETS / "sign.png").read_bytes()).decode()
ZOO = [{"role": "user", "content": "When does the zoo open?"}]
LIGHT = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switch a light on or off",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string"}, "on": {"type": "boolean"}},
            "required": ["room", "on"],
        },
    },
}


@pytest.fixture(scope="module")
def url(box):
    serving, _ = box
    return serving.url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def test_health_and_models(url, client, model):
    assert httpx2.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx2.get(f"{url}/readyz").status_code == 200
    assert client.models.retrieve(model).id == model


def test_openai_asks(client, model):
    answer = client.chat.completions.create(model=model, messages=ZOO, temperature=0)
    assert "9 am" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    short = client.chat.completions.create(model=model, messages=ZOO, max_completion_tokens=1)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 1)


def test_openai_streams(client, model):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=model, messages=ZOO, stream=True, stream_options=options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert "9 am" in text
    assert chunks[-1].usage.completion_tokens > 0


def test_openai_hears_probabilities_as_they_come(client, model):
    asked = {"model": model, "messages": ZOO, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked).choices[0]
    pieces = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    scored = [[token.token for token in piece.logprobs.content] for piece in pieces if piece.logprobs]
    assert [token for tokens in scored for token in tokens] == [token.token for token in whole.logprobs.content]
    assert len(scored) > 3
    assert max(map(len, scored)) <= 2  # each with its piece


def test_openai_sees_and_hears(client, model):
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{SIGN}"}}
    asked = [{"role": "user", "content": [image, {"type": "text", "text": "Read the sign."}]}]
    answer = client.chat.completions.create(model=model, messages=asked, temperature=0)
    assert "FLOOR 17" in answer.choices[0].message.content
    sound = {"data": base64.b64encode(VOICE.read_bytes()).decode(), "format": "wav"}
    asked = [{"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}]
    answer = client.chat.completions.create(model=model, messages=asked, temperature=0)
    assert "6 pm" in answer.choices[0].message.content


def test_openai_calls_a_tool_and_hears_its_result(client, model):
    messages = [{"role": "user", "content": "Turn on the light in the kitchen."}]
    answer = client.chat.completions.create(model=model, messages=messages, tools=[LIGHT], temperature=0)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert call.function.name == "set_light"
    assert json.loads(call.function.arguments)["room"] == "kitchen"
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": '{"ok": true}'}]
    answer = client.chat.completions.create(model=model, messages=messages, tools=[LIGHT], temperature=0)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_openai_is_answered_in_a_form(client, model):
    schema = {
        "type": "object",
        "properties": {"open": {"type": "boolean"}, "hour": {"type": "integer"}},
        "required": ["open", "hour"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "hours", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model=model, messages=ZOO, response_format=form, max_tokens=200)
    made = json.loads(answer.choices[0].message.content)
    assert (type(made["open"]), type(made["hour"])) == (bool, int)


def test_openai_must_call_a_tool_and_sees_probabilities(client, model):
    answer = client.chat.completions.create(
        model=model, messages=ZOO, tools=[LIGHT], tool_choice="required", max_tokens=200
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "set_light"
    answer = client.chat.completions.create(model=model, messages=ZOO, logprobs=True, top_logprobs=2, temperature=0)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).strip() == answer.choices[0].message.content.strip()
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


def test_openai_transcribes(client, model):
    said = "until what time is the zoo open"

    def plain(text):
        return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").strip()

    with VOICE.open("rb") as file:
        assert plain(client.audio.transcriptions.create(model=model, file=file).text) == said
    with VOICE.open("rb") as file:
        verbose = client.audio.transcriptions.create(model=model, file=file, response_format="verbose_json")
    assert plain(verbose.segments[0].text) == said
    assert verbose.segments[0].end <= verbose.duration
    with VOICE.open("rb") as file:
        srt = client.audio.transcriptions.create(model=model, file=file, response_format="srt")
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\n\w", srt)
    with VOICE.open("rb") as file:
        events = list(client.audio.transcriptions.create(model=model, file=file, stream=True))
    assert plain("".join(event.delta for event in events if event.type == "transcript.text.delta")) == said
    assert plain(events[-1].text) == said


def test_openai_hears_of_errors(client, model):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="else", messages=ZOO)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "the museum " * 4000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=model, messages=ZOO, n=2)
    with pytest.raises(openai.APIStatusError) as refused:
        client.audio.transcriptions.create(model=model, file=io.BytesIO(b"no sound"))
    assert refused.value.status_code == 415


def test_hugging_face_asks_streams_and_calls_tools(url, model):
    client = InferenceClient(base_url=url, api_key="none")
    answer = client.chat_completion(ZOO, model=model, temperature=0)
    assert "9 am" in answer.choices[0].message.content
    pieces = client.chat_completion(ZOO, model=model, stream=True)
    assert "9 am" in "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    asked = [{"role": "user", "content": "Turn on the light in the kitchen."}]
    answer = client.chat_completion(asked, model=model, tools=[LIGHT], temperature=0)
    assert answer.choices[0].message.tool_calls[0].function.name == "set_light"
    with pytest.raises(HfHubHTTPError):
        client.chat_completion(ZOO, model="else")


def test_a_voice_turn_over_a_websocket(url):
    with connect(f"{url.replace('http', 'ws')}/v1/listen") as line:
        line.send(json.dumps({"type": "start", "hands_free": True}))
        sound = VOICE.read_bytes()[44:] + bytes(32_000)
        for at in range(0, len(sound), 3200):
            line.send(sound[at : at + 3200])
        heard: list[dict[str, Any]] = []
        while not heard or heard[-1]["type"] != "answer":
            heard.append(json.loads(line.recv(timeout=60)))
    assert next(said["text"] for said in heard if said["type"] == "transcript") == "Until what time is the zoo open?"
    assert "6 pm" in heard[-1]["text"]
    assert [said["state"] for said in heard if said["type"] == "state"] == [
        "idle", "listening", "hearing", "thinking", "answering",
    ]  # fmt: skip


def test_it_is_there_before_the_model_and_ends_in_time(free_port, serve):
    url = f"http://127.0.0.1:{free_port}"
    daemon = serve(1, EDGE_RUNTIME_HTTP__LISTEN=f"127.0.0.1:{free_port}")  # and no broker
    seen = set()
    deadline = time.monotonic() + 120
    while 200 not in seen and time.monotonic() < deadline:
        with contextlib.suppress(httpx2.ConnectError):
            seen.add(httpx2.get(f"{url}/readyz").status_code)
            assert httpx2.get(f"{url}/healthz").status_code == 200
    assert seen == {200, 503}
    assert daemon.url == url
    with connect(f"{url.replace('http', 'ws')}/v1/listen") as line:
        assert json.loads(line.recv(timeout=20))["type"] == "ready"
        assert daemon.stop() < 20
    assert "Traceback" not in daemon.log
    assert "ERROR" not in daemon.log
