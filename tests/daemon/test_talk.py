from __future__ import annotations

import time

import numpy as np
import pytest

from edge_runtime.daemon.talk import Talk, Turn
from edge_runtime.perception.utterance import Utterance
from edge_runtime.settings import LimitsSettings, Settings
from edge_runtime.settings_senses import MicrophoneSettings
from tests.daemon.senses import house

SOUND = np.full(16_000, 0.1, np.float32)


@pytest.fixture
def home(model):
    with house(Settings(limits=LimitsSettings()), model) as built:
        yield built


def turn(home, *, early=False, **settings):
    """A turn that has begun, and what is said in it."""
    utterance = Utterance("kitchen", "wake", "hey you")
    talk = Talk(MicrophoneSettings("kitchen", **settings), home.local, home.news, early=early)
    begun = Turn(talk, utterance, "kitchen/1")
    begun.start()
    return begun, utterance


def ended(utterance):
    utterance.push(SOUND)
    utterance.end("pause")


def test_an_utterance_becomes_a_transcript_and_an_answer(home, model):
    _, utterance = turn(home, system="Be brief.", max_tokens=20, language="German")
    ended(utterance)
    (transcript_topic, transcript), (answer_topic, answer) = home.news.wait(2)
    assert (transcript_topic, answer_topic) == ("event/transcript", "answer")
    assert transcript | {"timing": 0, "began": 0} == {
        "id": "kitchen/1",
        "text": "hello",
        "duration": 1.0,
        "timing": 0,
        "microphone": "kitchen",
        "trigger": "wake",
        "wake_word": "hey you",
        "began": 0,
    }
    assert abs(transcript["began"] - time.time()) < 60
    assert (answer["id"], answer["microphone"], answer["text"]) == ("kitchen/1", "kitchen", "hello ")
    assert home.news.hints == [("answer/delta", {"id": "kitchen/1", "seq": 0, "text": "hello "})]
    assert model.calls[0][1] == {"language": "German"}
    messages, options = model.calls[1]
    assert [message["role"] for message in messages] == ["system", "user"]
    assert options["max_tokens"] == 20


def test_the_next_utterance_goes_on_with_the_conversation(home, model):
    for _ in range(2):
        _, utterance = turn(home)
        ended(utterance)
        home.news.wait(2)
        home.news.told.clear()
    assert [message["role"] for message in model.calls[3][0]] == ["user", "assistant", "user"]


def test_what_is_to_be_written_down_only_is_not_answered(home, model):
    _, utterance = turn(home, action="transcribe")
    ended(utterance)
    home.news.wait(1)
    time.sleep(0.1)
    assert len(home.news.told) == len(model.calls) == 1


@pytest.mark.parametrize("early", [False, True])
def test_a_cough_comes_to_nothing(home, model, early):
    _, utterance = turn(home, early=early)
    utterance.push(SOUND)
    utterance.abort("too short for speech")
    time.sleep(0.3)
    assert home.news.told == []
    assert model.calls == []


@pytest.mark.parametrize("early", [False, True])
def test_a_turn_is_cancelled_while_somebody_speaks(home, model, early):
    begun, utterance = turn(home, early=early)
    utterance.push(SOUND)
    begun.cancel()
    assert utterance.aborted == "cancelled"
    assert home.room.wait_idle(20)
    assert model.calls == []


def test_a_turn_is_cancelled_while_it_is_answered(home, model):
    model.gate.clear()
    begun, utterance = turn(home)
    ended(utterance)
    assert model.begun.wait(20)
    begun.cancel()
    assert home.room.wait_idle(20)
    assert home.news.told == []


def test_a_model_that_can_listens_while_the_person_speaks(home, model):
    class Ear:
        def __init__(self):
            self.fed = []

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def feed(self, samples):
            self.fed.append(len(samples))

        def finish(self):
            return model.chat([{"content": [{"type": "text", "text": "open it"}]}], cancel=None)

    ear, asked = Ear(), []

    def listen(prompt, *, temperature, cancel):
        asked.append(prompt)
        return ear

    model.listen = listen
    _, utterance = turn(home, early=True, language="French")
    utterance.push(SOUND)
    deadline = time.monotonic() + 20
    while not ear.fed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ear.fed == [16_000]  # before the end
    utterance.end("pause")
    assert home.news.wait(1)[0][1]["text"] == "open it"
    assert "French" in asked[0]


def test_a_busy_box_says_so(home):
    home.room.refusal = "the box is too hot"
    _, utterance = turn(home)
    ended(utterance)
    ((_, body),) = home.news.wait(1)
    assert body["error"]["code"] == "busy"
    assert body["microphone"] == "kitchen"
