"""Spoken conversations over a real WebSocket; real speech, a real detector, a fake model."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import edge_runtime

TOKEN = "0123456789abcdef-secret"
SPEECH, _ = soundfile.read(Path(edge_runtime.__file__).parent / "demo_assets" / "voice.wav", dtype="int16")
SILENCE = np.zeros(16_000, np.int16)


class Browser:
    """What the page does."""

    def __init__(self, box, **more):
        self.line = connect(f"ws://127.0.0.1:{box.server.address[1]}/v1/listen", open_timeout=20, **more)
        self.heard = []

    def tell(self, kind, **body):
        self.line.send(json.dumps({"type": kind, **body}))

    def speak(self, samples):
        data = samples.tobytes()
        for at in range(0, len(data), 1001):  # no whole number of samples
            self.line.send(data[at : at + 1001])

    def wait(self, kind, **wanted):
        """The next message of that kind; all before it are kept in `heard`."""
        while True:
            message = json.loads(self.line.recv(timeout=20))
            self.heard.append(message)
            if message["type"] == kind and all(message.get(name) == value for name, value in wanted.items()):
                return message

    def said(self, kind):
        return [message for message in self.heard if message["type"] == kind]

    @property
    def states(self):
        return [message["state"] for message in self.said("state")]


@pytest.fixture(params=[False, True], ids=["then", "live"])
def box(start, request):
    """Once with a model that listens when all is said, once with one that listens meanwhile."""
    return start(live=request.param)


@pytest.fixture
def browse(start):
    with contextlib.ExitStack() as lines:

        def begin(box=None, **more):
            browser = Browser(box or start(), **more)
            lines.callback(browser.line.close)
            return browser

        yield begin


def test_push_to_talk(box, browse):
    browser = browse(box)
    ready = browser.wait("ready")
    assert (ready["model"], ready["sample_rate"]) == ("fake", 16_000)
    browser.tell("start", language="de", system="Be brief.", max_tokens=9)
    assert browser.wait("state", state="listening")["seconds"] == 29
    browser.speak(SPEECH)
    browser.tell("stop")
    answer = browser.wait("answer")
    assert (answer["text"], answer["finish_reason"]) == ("hello ", "stop")
    assert [piece["text"] for piece in browser.said("transcript.delta")] == ["hel", "lo"]
    assert browser.said("transcript") == [{"type": "transcript", "text": "hello"}]
    assert [piece["text"] for piece in browser.said("delta")] == ["hello "]
    browser.wait("state", state="idle")
    assert browser.states == ["idle", "listening", "hearing", "thinking", "answering", "idle"]
    (sound, options), (messages, asking) = box.model.calls
    assert options == {"language": "German"}
    assert len(sound) > 0.9 * len(SPEECH)
    assert messages[0]["content"][0]["text"] == "Be brief."
    assert asking == {"max_tokens": 9}


def test_hands_free_waits_for_speech_and_a_pause(box, browse):
    browser = browse(box)
    browser.tell("start", hands_free=True)
    browser.wait("state", state="listening")
    for _ in range(2):
        browser.speak(np.concatenate([SILENCE, SPEECH, SILENCE]))
        browser.wait("answer")
        browser.wait("state", state="listening")
    assert browser.states[2:] == ["hearing", "thinking", "answering", "listening"] * 2
    browser.tell("stop")
    browser.wait("state", state="idle")
    # What was said before is told to the model again.
    assert [message["role"] for message in box.model.calls[3][0]] == ["user", "assistant", "user"]


def test_speech_interrupts_an_answer(box, browse):
    browser = browse(box)
    browser.tell("start", hands_free=True)
    browser.speak(np.concatenate([SPEECH, SILENCE]))
    browser.wait("answer")
    browser.wait("state", state="listening")
    box.model.gate.clear()
    box.model.begun.clear()
    browser.tell("ask", text="a long story")
    browser.wait("state", state="thinking")
    assert box.model.begun.wait(20)
    browser.speak(SPEECH)
    browser.wait("cancelled")
    browser.wait("state", state="hearing")
    box.model.gate.set()
    browser.speak(SILENCE)
    browser.wait("transcript")
    browser.wait("answer")


def test_a_cough_is_no_question_and_the_next_one_is_heard(box, browse):
    browser = browse(box)
    browser.tell("start", hands_free=True)
    browser.speak(np.concatenate([SILENCE, SPEECH[3000:6000], SILENCE]))
    browser.wait("state", state="listening")
    browser.speak(np.concatenate([SPEECH, SILENCE]))
    browser.wait("answer")
    assert not browser.said("cancelled")
    assert not browser.said("error")
    assert browser.states[-3:] == ["hearing", "thinking", "answering"]


def test_the_model_hears_while_somebody_speaks(start, browse):
    box = start(live=True)
    browser = browse(box)
    browser.tell("start", hands_free=True)
    browser.speak(SPEECH)
    browser.wait("state", state="hearing")
    deadline = time.monotonic() + 20
    while not box.admission.busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert box.admission.busy
    browser.tell("cancel")
    assert box.admission.wait_idle(20)
    assert not box.model.calls


def test_a_knock_does_not_interrupt(box, browse):
    browser = browse(box)
    browser.tell("start", hands_free=True)
    box.model.gate.clear()
    browser.tell("ask", text="a long story")
    assert box.model.begun.wait(20)
    knock = np.zeros(16_000, np.int16)
    knock[:400] = 20_000
    browser.speak(knock)
    box.model.gate.set()
    assert browser.wait("answer")["text"] == "a long story "
    assert not browser.said("cancelled")


@pytest.mark.parametrize("way", ["cancel", "start"])
def test_a_button_interrupts_an_answer(box, browse, way):
    browser = browse(box)
    box.model.gate.clear()
    browser.tell("ask", text="a long story")
    assert box.model.begun.wait(20)
    browser.tell(way)
    browser.wait("cancelled")
    browser.wait("state", state="idle" if way == "cancel" else "listening")
    assert box.admission.wait_idle(20)


def test_hanging_up_ends_the_work(box, browse):
    browser = browse(box)
    box.model.gate.clear()
    browser.tell("ask", text="a long story")
    assert box.model.begun.wait(20)
    browser.line.close()
    assert box.admission.wait_idle(20)


def test_a_picture_goes_with_the_next_question_only(box, browse, png):
    browser = browse(box)
    browser.tell("image", image=f"data:image/png;base64,{base64.b64encode(png).decode()}")
    for _ in range(2):
        browser.tell("ask", text="What is this?")
        browser.wait("answer")
    kinds = [[item["type"] for item in call[0][-1]["content"]] for call in box.model.calls]
    assert kinds == [["image", "text"], ["text"]]


def test_speech_alone_or_its_transcript_alone(box, browse):
    browser = browse(box)
    browser.tell("start", transcript=False)
    browser.speak(SPEECH)
    browser.tell("stop")
    browser.wait("answer")
    assert [item["type"] for item in box.model.calls[0][0][0]["content"]] == ["audio"]
    browser.tell("start", answer=False)
    browser.speak(SPEECH)
    browser.tell("stop")
    browser.wait("transcript")
    browser.wait("state", state="idle")
    assert len(box.model.calls) == 2


def test_reset_leaves_nothing(box, browse):
    browser = browse(box)
    browser.tell("ask", text="my secret", session="desk")
    browser.wait("answer")
    assert len(box.worker._sessions) == 1
    browser.tell("reset")
    browser.wait("reset")
    assert len(box.worker._sessions) == 0
    browser.tell("ask", text="what did I say?")
    browser.wait("answer")
    assert len(box.model.calls[-1][0]) == 1


def test_a_named_conversation_outlives_its_connection_and_no_other_does(box, browse):
    for session in (None, "desk"):
        browser = browse(box)
        browser.tell("ask", text="one", session=session)
        browser.wait("answer")
        browser.line.close()
    browser = browse(box)
    browser.tell("ask", text="two", session="desk")
    browser.wait("answer")
    assert len(box.model.calls[-1][0]) == 3
    assert [client for client, _ in box.worker._sessions._conversations] == ["listen desk"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "dance"}, "type"),
        ({"type": "ask"}, "text"),
        ({"type": "ask", "text": " "}, "text"),
        ({"type": "start", "language": "klingon"}, "language"),
        ({"type": "start", "hands_free": "yes"}, "hands_free"),
        ({"type": "start", "hands_free": True, "pause_s": 99}, "pause_s"),
        ({"type": "image", "image": "http://127.0.0.1/x.png"}, "image"),
        ({"type": "start", "max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_wrong_is_named_and_the_line_stays(box, browse, message, param):
    browser = browse(box)
    browser.line.send(json.dumps(message))
    assert browser.wait("error")["error"]["param"] == param
    browser.tell("ask", text="still there?")
    browser.wait("answer")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"type": NaN}'])
def test_what_is_no_json_object_is_refused(box, browse, text):
    browser = browse(box)
    browser.line.send(text)
    assert browser.wait("error")["error"]["code"] == "bad_request"


def test_errors_of_the_model_are_told(box, browse):
    browser = browse(box)
    box.model.error = ValueError("secret")
    browser.tell("ask", text="x")
    error = browser.wait("error")["error"]
    assert error["code"] == "internal"
    assert "secret" not in error["message"]
    browser.wait("state", state="idle")


def test_an_empty_recording_is_told(box, browse):
    browser = browse(box)
    browser.tell("start")
    browser.tell("stop")
    assert browser.wait("error")["error"]["param"] == "sound"


def test_sound_that_nobody_can_have_spoken_ends_the_line(box, browse):
    browser = browse(box)
    browser.tell("start", hands_free=True)
    with contextlib.suppress(ConnectionClosed):
        for _ in range(100):
            browser.line.send(bytes(100_000))
    with pytest.raises(ConnectionClosed) as closed:
        browser.wait("never")
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1008


def test_too_much_at_once_is_refused(box, browse):
    browser = browse(box)
    browser.line.send(bytes(200_000))
    assert browser.wait("error")["error"]["code"] == "too_large"


def test_the_token_comes_as_a_subprotocol_a_header_or_in_the_address(start, browse):
    box = start(token=TOKEN)
    browser = browse(box, subprotocols=["edge-runtime", f"bearer.{TOKEN}"])
    assert browser.line.subprotocol == "edge-runtime"
    browse(box, additional_headers={"Authorization": f"Bearer {TOKEN}"}).wait("ready")
    with connect(f"ws://127.0.0.1:{box.server.address[1]}/v1/listen?token={TOKEN}") as line:
        assert json.loads(line.recv(timeout=20))["type"] == "ready"
    for more in ({}, {"subprotocols": ["edge-runtime", "bearer.wrong"]}):
        with pytest.raises(InvalidStatus) as refused:
            browse(box, **more)
        assert refused.value.response.status_code == 401


def test_pages_of_other_servers_are_refused(box, browse):
    browse(box, origin=box.url).wait("ready")
    with pytest.raises(InvalidStatus) as refused:
        browse(box, origin="https://evil.example")
    assert refused.value.response.status_code == 403


def test_only_so_many_talk_and_nobody_before_the_model_is_there(start, browse):
    box = start(voices=1, loaded=False)
    with pytest.raises(InvalidStatus) as refused:
        browse(box)
    assert refused.value.response.status_code == 503
    box.load()
    first = browse(box)
    first.wait("ready")
    with pytest.raises(InvalidStatus) as refused:
        browse(box)
    assert refused.value.response.status_code == 429
    first.line.close()


def test_the_end_of_the_daemon_is_told(box, browse):
    browser = browse(box)
    browser.wait("ready")
    box.server.stop()
    with pytest.raises(ConnectionClosed) as closed:
        browser.wait("never")
    assert closed.value.rcvd.code == 1012
