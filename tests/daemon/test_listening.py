"""A question that is still being spoken: the model listens meanwhile, and answers as to the whole recording."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import pytest

from edge_runtime.daemon.requests import Live, Request
from edge_runtime.daemon.senses import Senses
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.utterance import Utterance
from edge_runtime.settings import LimitsSettings, Settings
from tests.daemon.senses import house

SOUND = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)
NO_PLACE = EdgeRuntimeError("no place", "too_large")


class Listening:
    """Collects what it is fed, and asks at the end."""

    def __init__(self, model, messages, prompt, options):
        self._model, self._messages, self._prompt, self._options = model, messages, prompt, options
        self.fed = []

    def feed(self, samples):
        self.fed.append(samples)
        if self._model.full_after is not None and len(self.fed) > self._model.full_after:
            raise NO_PLACE

    def finish(self):
        content = [{"type": "audio", "audio": np.concatenate(self.fed)}]
        content += [{"type": "text", "text": self._prompt}] if self._prompt else []
        return self._model.chat([*self._messages, {"role": "user", "content": content}], **self._options)


@pytest.fixture
def listening(model):
    """Makes the fake model listen; all that it listened to."""
    made = []

    @contextlib.contextmanager
    def listen(prompt="", *, messages=(), **options):
        made.append(Listening(model, messages, prompt, options))
        yield made[-1]

    model.listen, model.full_after = listen, None
    return made


@pytest.fixture
def home(model):
    with house(Settings(limits=LimitsSettings()), model) as built:
        yield built


class Asked:
    """A question, while it is being spoken."""

    def __init__(self, home, *after, before=(), session=None, listening=None):
        """Args: where; what stands after and before the sound; the conversation; those who listen, to wait for one."""
        self.utterance = Utterance("kitchen", "push", None)
        content = [*before, {"type": "audio", "audio": self.utterance}, *after]
        messages = [{"role": "user", "content": content}]
        request = Request("ask", "q", messages, session=session, options={"max_tokens": 9})
        count = len(listening or [])
        self.final: list[dict[str, Any]] = []
        self.handle = home.local.submit(request, client="c", rank=2, on_delta=None, on_final=self.final.append)
        self._room = home.room
        assert listening is None or _soon(lambda: len(listening) > count)

    def end(self):
        self.utterance.end("pause")
        return self.wait()

    def wait(self):
        assert _soon(lambda: self.final)
        assert self._room.wait_idle(20)
        return self.final[0]


def _soon(true):
    deadline = time.monotonic() + 20
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


def _text(words):
    return {"type": "text", "text": words}


def _sounds(messages):
    return [item["audio"] for item in messages[-1]["content"] if item["type"] == "audio"]


@pytest.mark.parametrize("after", [[], [_text("answer in French")]])
def test_the_model_hears_the_question_before_its_end(home, model, listening, after):
    asked = Asked(home, *after, listening=listening)
    asked.utterance.push(SOUND[:8000])
    assert _soon(lambda: listening[0].fed)
    assert model.calls == []
    asked.utterance.push(SOUND[8000:])
    body = asked.end()
    assert body["text"] == ("answer in French " if after else "heard ")
    ((messages, options),) = model.calls
    assert options == {"max_tokens": 9}
    np.testing.assert_array_equal(_sounds(messages)[0], SOUND)
    assert messages[-1]["content"][1:] == after


def test_what_was_said_before_comes_before(home, listening, model):
    for _ in range(2):
        asked = Asked(home, session="s", listening=listening)
        asked.utterance.push(SOUND)
        asked.end()
    assert [message["role"] for message in model.calls[1][0]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("full_after", [0, 1])
def test_a_conversation_that_leaves_no_place_is_shortened_and_no_sound_is_lost(home, listening, model, full_after):
    first = Asked(home, session="s", listening=listening)
    first.utterance.push(SOUND)
    first.end()
    model.full_after = full_after
    asked = Asked(home, session="s", listening=listening)
    asked.utterance.push(SOUND[:8000])
    asked.utterance.push(SOUND[8000:])
    assert asked.end()["text"] == "heard "
    np.testing.assert_array_equal(_sounds(model.calls[-1][0])[0], SOUND)


def test_a_question_that_is_too_long_by_itself_is_refused(home, listening, model):
    model.full_after = 0
    asked = Asked(home, listening=listening)
    asked.utterance.push(SOUND)
    assert asked.end()["error"] == {"code": "too_large", "message": "no place"}


def test_it_waits_for_the_end_where_a_picture_comes_first(home, listening, model, png):
    asked = Asked(home, before=[{"type": "image", "image": png}])
    asked.utterance.push(SOUND)
    assert asked.end()["text"] == "heard "
    assert listening == []
    np.testing.assert_array_equal(_sounds(model.calls[0][0])[0], SOUND)


def test_a_question_that_is_over_already_is_asked_as_a_whole(home, listening, model):
    model.gate.clear()
    other = Asked(home, before=[_text("first")])
    other.utterance.push(SOUND)
    other.utterance.end("pause")
    assert model.begun.wait(20)
    asked = Asked(home)
    asked.utterance.push(SOUND)
    asked.utterance.end("pause")
    model.gate.set()
    assert asked.wait()["text"] == "heard "
    assert listening == []


class Ears:
    """What a microphone heard for a request can be fetched once."""

    def __init__(self):
        self.recordings = [Utterance("kitchen", "push", None)]

    def pushed(self, ticket):
        return self.recordings.pop()

    def aloud(self, name, running):
        return contextlib.nullcontext(lambda _: None)


@pytest.mark.parametrize("over", [False, True])
def test_what_a_microphone_heard_is_fetched_once(listening, model, over):
    ears: Any = Ears()
    made = Senses(ears, eyes=ears)
    (utterance,) = ears.recordings
    utterance.push(SOUND)
    if over:
        utterance.end("pause")
    with house(Settings(), model, lambda _: made) as home:
        request = Request("ask", "q", [{"role": "user", "content": [{"type": "audio", "audio": Live("kitchen")}]}])
        final: list[dict[str, Any]] = []
        home.local.submit(request, client="c", rank=2, on_delta=None, on_final=final.append)
        assert over or _soon(lambda: listening)
        utterance.end("pause")
        assert _soon(lambda: final)
    assert final[0]["text"] == "heard "
    assert len(listening) == (not over)


def test_silence_and_giving_up_come_to_nothing(home, listening, model):
    asked = Asked(home, listening=listening)
    asked.utterance.abort("nobody spoke")
    assert asked.wait()["error"] == {"code": "cancelled", "message": "microphone kitchen: nobody spoke"}
    asked = Asked(home, listening=listening)
    asked.utterance.push(SOUND)
    assert _soon(lambda: listening[1].fed)
    asked.handle.cancel()
    assert asked.wait()["error"]["code"] == "cancelled"
    assert asked.utterance.aborted == "cancelled"
    assert model.calls == []
