from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from edge_runtime.daemon.admission import Running, Ticket
from edge_runtime.daemon.ears import MOST_PUSHED, Ears, _Duplex, find
from edge_runtime.daemon.eyes import Eyes
from edge_runtime.daemon.requests import Live, Reply
from edge_runtime.daemon.senses import Senses, collected
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.echo import Gate
from edge_runtime.perception.utterance import Utterance
from edge_runtime.settings import Settings
from edge_runtime.settings_senses import MicrophoneSettings, SpeechSettings
from tests.daemon.senses import house

NOBODY: Any = None


def ears(**settings):
    return Ears(Settings(**settings), NOBODY, NOBODY, streams=False)


def ticket(seq):
    return Ticket(seq, "a", "ask", "", Reply("t"), NOBODY)


class There:
    """A microphone that is there."""

    def __init__(self):
        self.utterances = []

    def push(self, seconds):
        self.utterances.append(Utterance("kitchen", "push"))
        return self.utterances[-1]


def test_what_was_said_is_fetched_once_and_lost_by_a_restart():
    made: Any = ears()
    made._microphones["kitchen"] = There()
    made.push(ticket(1), Live("kitchen"))
    assert made.pushed(ticket(1)) is made._microphones["kitchen"].utterances[0]
    for _ in range(2):
        with pytest.raises(EdgeRuntimeError, match="was restarted") as caught:
            made.pushed(ticket(1))
        assert caught.value.code == "internal"


def test_recordings_that_nobody_fetches_do_not_pile_up():
    made: Any = ears()
    made._microphones["kitchen"] = There()
    for seq in range(MOST_PUSHED + 3):
        made.push(ticket(seq), Live("kitchen"))
    gone = [utterance.aborted for utterance in made._microphones["kitchen"].utterances]
    assert gone[:4] == ["cancelled"] * 3 + [None]


def test_a_microphone_that_is_away_is_said_when_the_request_runs():
    class Away:
        def push(self, seconds):
            raise EdgeRuntimeError("microphone kitchen is not there: unplugged", "internal")

    made: Any = ears()
    made._microphones["kitchen"] = Away()
    made.push(ticket(1), Live("kitchen"))
    with pytest.raises(EdgeRuntimeError, match="unplugged"):
        made.pushed(ticket(1))


def test_whoever_waits_for_an_utterance_can_be_stopped():
    stop = threading.Event()
    stop.set()
    utterance = Utterance("kitchen", "push")
    with pytest.raises(EdgeRuntimeError, match="microphone kitchen: cancelled") as caught:
        collected(utterance, stop)
    assert caught.value.code == "cancelled"
    assert utterance.aborted == "cancelled"


def test_a_microphone_is_deaf_while_we_speak_unless_our_voice_is_taken_out():
    gate = Gate(tail_s=0.0)
    for free, deaf in ((None, True), (False, True), (True, False)):
        duplex = _Duplex(gate, free=free)
        assert not duplex.closed
        with gate:
            assert duplex.closed is deaf


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (SpeechSettings(engine="piper"), "piper wants the path of a voice"),
        (SpeechSettings(engine="espeak-ng", voice="a.onnx"), "is a voice of piper"),
        (SpeechSettings(voice="/nowhere/a.onnx"), "piper"),
    ],
)
def test_a_voice_that_is_not_there_is_said(settings, says):
    with pytest.raises(EdgeRuntimeError, match=says):
        find(settings)


def test_a_box_without_a_voice_is_silent(monkeypatch, caplog):
    assert find(SpeechSettings(engine="off")) is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert find(SpeechSettings()) is None
    with pytest.raises(EdgeRuntimeError, match="espeak-ng"):
        find(SpeechSettings(engine="espeak-ng"))
    silent = ears(microphones=(MicrophoneSettings("kitchen"),))
    assert silent.speaker is None
    silent.say(b"hello")
    assert "nothing can be said" in caplog.text


class Still:
    """An ear that hears what a test says."""

    def __init__(self, name, options, on_utterance, *, gate, on_change):
        self.name, self.hear = name, on_utterance
        self.states = []

    def answering(self, on):
        self.states.append(on)

    def push_to_talk(self, *, seconds, until_pause):
        return Utterance(self.name, "push")

    def close(self):
        pass


@pytest.fixture
def kitchen(model, monkeypatch):
    """A microphone whose turns are answered by a model that a test holds back."""
    monkeypatch.setattr("edge_runtime.daemon.ears.Ear", Still)
    settings = Settings(microphones=(MicrophoneSettings("kitchen", speak=False),), speech=SpeechSettings(engine="off"))
    made: list[Any] = []

    def senses(home):
        made.append(
            Senses(Ears(settings, home.local, home.news, streams=False), Eyes(home.parser, home.local, home.news))
        )
        made[0].ears.open()
        return made[0]

    with house(settings, model, senses) as home:
        yield home, made[0].ears._microphones["kitchen"]
        made[0].close()


def spoken(microphone):
    utterance = Utterance("kitchen", "voice")
    microphone.ear.hear(utterance)
    utterance.push(np.full(16_000, 0.1, np.float32))
    utterance.end("pause")


def test_whoever_speaks_next_ends_an_answer_that_is_being_made(kitchen, model):
    home, microphone = kitchen
    transcribe, asked = model.transcribe, threading.Event()

    def held(source, **options):
        transcript = transcribe(source, **options)
        if not asked.is_set():  # the first answer waits
            model.gate.clear()
            model.begun.clear()
            asked.set()
        return transcript

    model.transcribe = held
    spoken(microphone)
    assert asked.wait(20)
    assert model.begun.wait(20)
    spoken(microphone)
    home.news.wait_for(lambda: any("error" in body for _, body in home.news.told))
    model.gate.set()
    told = home.news.wait(4)
    ends = [body.get("text") or body["error"]["code"] for topic, body in told if topic == "answer"]
    assert ends == ["cancelled", "hello "]
    assert [topic for topic, _ in told].count("event/transcript") == 2


def test_a_request_that_listens_silences_what_is_being_said(kitchen):
    _, microphone = kitchen
    running = Running(ticket(1))
    with microphone.answering(running) as say:
        say("once upon a time")
        assert microphone.ear.states == [True]
        assert microphone.push(None).trigger == "push"
        assert running.reason == "cancelled"
    deadline = time.monotonic() + 20
    while microphone.ear.states[-1] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert microphone.ear.states == [True, False]
