from __future__ import annotations

import json
from pathlib import Path

import pytest

import edge_runtime
from edge_runtime.daemon.http import subtitles
from edge_runtime.daemon.languages import code_of
from edge_runtime.engine.answer import Answer
from edge_runtime.engine.model import Model
from edge_runtime.engine.protocol import Info, Piece
from edge_runtime.errors import EdgeRuntimeError
from tests.gemma import tiny

URL = "/v1/audio/transcriptions"


def post(http, wav, url=URL, **fields):
    return http.post(url, files={"file": ("voice.wav", wav)}, data=fields)


def test_every_form_of_the_answer(http, wav):
    assert post(http, wav).json() == {"text": "hello"}
    plain = post(http, wav, response_format="text")
    assert (plain.text, plain.headers["content-type"]) == ("hello\n", "text/plain; charset=utf-8")
    assert post(http, wav, response_format="srt").text == "1\n00:00:00,000 --> 00:00:01,000\nhello\n"
    vtt = post(http, wav, response_format="vtt")
    assert vtt.text == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nhello\n"
    assert vtt.headers["content-type"].startswith("text/vtt")
    segments = {"timestamp_granularities[]": "segment"}
    assert post(http, wav, response_format="verbose_json", language="de-AT", **segments).json() == {
        "task": "transcribe",
        "language": "german",
        "duration": 1.0,
        "text": "hello",
        "segments": [{"id": 0, "start": 0.0, "end": 1.0, "text": "hello"}],
    }


def test_a_transcript_in_pieces(http, wav):
    answer = post(http, wav, stream="true")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    assert [json.loads(line) for line in lines[:-1]] == [
        {"type": "transcript.text.delta", "delta": "hel"},
        {"type": "transcript.text.delta", "delta": "lo"},
        {"type": "transcript.text.done", "text": "hello"},
    ]


class Thinker:
    """An engine that thinks first: real tokens through the real reader of answers."""

    info = Info(name="fake", modalities=["text", "audio"], context=4096)
    max_audio_seconds = 30.0

    def run(self, request):
        tokenizer = tiny.tokenizer()
        answer = Answer(tokenizer, [], ends=set(tokenizer.encode("<turn|>")), stop=(), max_tokens=100)
        for token in tokenizer.encode("<|channel>thought\nsecret<channel|>hello<turn|>"):
            yield Piece(answer.push(token))
        tail, reason = answer.finish()
        assert answer.parser.thoughts == "secret"
        yield Piece(tail, finish_reason=reason, thoughts="secret")

    def close(self):
        pass


def test_thoughts_never_leak(box, http):
    box.model.transcribe = Model(Thinker()).transcribe
    speech = (Path(edge_runtime.__file__).parent / "demo_assets" / "voice.wav").read_bytes()
    for form in ("json", "text", "srt", "verbose_json", "vtt"):
        answer = post(http, speech, response_format=form)
        assert "hello" in answer.text
        assert "secret" not in answer.text
    answer = post(http, speech, stream="true")
    assert "secret" not in answer.text
    assert '"text": "hello"' in answer.text


def test_options_reach_the_model(box, http, wav):
    post(http, wav, language="fr", prompt="Zoo hours", temperature="0.2", model="fake")
    assert box.model.calls[-1][1] == {"language": "French", "hint": "Zoo hours", "temperature": 0.2}
    assert post(http, wav, "/v1/audio/translations", response_format="verbose_json").json()["task"] == "translate"
    assert box.model.calls[-1][1] == {"language": "English", "translate_to": "English"}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"language": "klingon"}, 400, "language"),
        ({"response_format": "xml"}, 400, "response_format"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": "nan"}, 400, "temperature"),
        ({"stream": "maybe"}, 400, "stream"),
        ({"stream": "true", "response_format": "srt"}, 400, "stream"),
        ({"timestamp_granularities[]": "word"}, 400, "timestamp_granularities[]"),
        ({"model": "whisper-1"}, 404, "model"),
        ({"prompt": "x" * 20_000}, 400, None),
        ({"deadline_s": "soon"}, 400, "deadline_s"),
        ({"priority": "1.5"}, 400, "priority"),
    ],
)
def test_what_is_wrong_is_named(http, wav, fields, status, param):
    refused = post(http, wav, **fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


def test_only_recordings_are_taken(http, wav):
    assert post(http, b"text").status_code == 415
    assert post(http, b"").status_code == 415
    assert http.post(URL, data={"file": "a name"}, files={"other": b"x"}).json()["error"]["param"] == "file"
    assert http.post(URL, json={"file": "x"}).status_code == 415
    assert http.post(URL, content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400
    assert http.post(URL, files=[("file", wav), ("file", wav)]).status_code == 400
    assert post(http, wav + b"\0" * 400_000).status_code == 413


def test_cues_cannot_be_broken_out_of():
    segments = [
        {"start": 0.0, "end": 3661.5, "text": "a\n\n2 --> <b>"},
        {"start": 3661.5, "end": 3662.0004, "text": "c"},
    ]
    assert subtitles.srt(segments) == (
        "1\n00:00:00,000 --> 01:01:01,500\na 2 -> <b>\n\n2\n01:01:01,500 --> 01:01:02,000\nc\n"
    )
    assert "a 2 -&gt; &lt;b&gt;" in subtitles.vtt(segments)
    assert subtitles.srt([]) == ""
    assert subtitles.vtt([]) == "WEBVTT\n"


@pytest.mark.parametrize(("said", "code"), [("EN", "en"), ("pt_BR", "pt"), ("nb-NO", "no"), ("Japanese", "ja")])
def test_languages_by_code_and_name(said, code):
    assert code_of(said) == code


def test_other_languages_are_not_known():
    with pytest.raises(EdgeRuntimeError, match="ISO 639-1"):
        code_of("xx")
