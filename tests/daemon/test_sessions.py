from __future__ import annotations

import pytest

from edge_runtime.daemon.sessions import Conversation, Sessions, Turn, compose, turn_of
from edge_runtime.settings import LimitsSettings


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def turn(name, tokens=1, size=1, seen=False):
    return Turn(name, "x" * size, tokens, seen)


def user(*items):
    return {"role": "user", "content": list(items)}


def text(words):
    return {"type": "text", "text": words}


def add(sessions, client, name, *turns):
    conversation = sessions.recall(client, name)
    conversation.turns = [*conversation.turns, *turns]
    sessions.remember(client, name, conversation)
    return conversation


def questions(sessions, client, name):
    return [one.question for one in sessions.recall(client, name).turns]


def test_a_conversation_is_remembered_for_its_own_client(clock):
    sessions = Sessions(LimitsSettings(), 4096, clock)
    add(sessions, "a", "s", turn("one"))
    add(sessions, "a", "s", turn("two"))
    assert questions(sessions, "a", "s") == ["one", "two"]
    assert questions(sessions, "b", "s") == []
    assert questions(sessions, "a", "other") == []


def test_turns_bytes_and_tokens_are_bounded_from_the_old_end(clock):
    limits = LimitsSettings(session_turns=3, session_bytes=256)
    sessions = Sessions(limits, 100, clock)
    add(sessions, "a", "turns", *(turn(str(number)) for number in range(9)))
    assert questions(sessions, "a", "turns") == ["6", "7", "8"]
    add(sessions, "a", "bytes", turn("x", size=200), turn("y", size=100), turn("z", size=100))
    assert questions(sessions, "a", "bytes") == ["y", "z"]
    add(sessions, "a", "tokens", turn("x", tokens=30), turn("y", tokens=30), turn("z", tokens=20))
    assert questions(sessions, "a", "tokens") == ["y", "z"]
    add(sessions, "a", "one too large", turn("x", tokens=51))
    assert questions(sessions, "a", "one too large") == []


def test_the_longest_unused_makes_room_and_the_idle_are_forgotten(clock):
    sessions = Sessions(LimitsSettings(sessions=2, session_idle_s=60), 4096, clock)
    for name in ("a", "b"):
        clock.now += 1
        add(sessions, "", name, turn(name))
    clock.now += 1
    add(sessions, "", "a", turn("again"))
    add(sessions, "", "c", turn("c"))
    assert questions(sessions, "", "b") == []
    assert questions(sessions, "", "a") == ["a", "again"]
    clock.now += 61
    assert questions(sessions, "", "a") == []
    assert len(sessions) == 0


def test_no_sessions_are_kept_where_none_are_wanted(clock):
    sessions = Sessions(LimitsSettings(sessions=0), 4096, clock)
    add(sessions, "", "a", turn("a"))
    assert len(sessions) == 0


def test_memory_is_bounded_whatever_names_come(clock):
    sessions = Sessions(LimitsSettings(sessions=8), 4096, clock)
    for number in range(1000):
        add(sessions, f"client {number}", "s", turn("x"))
    assert len(sessions) == 8


def test_history_stands_between_system_and_question():
    conversation = Conversation([turn("q", size=2)], system="Old rule.")
    system = {"role": "system", "content": [text("New rule.")]}
    own = compose(conversation, [system, user(text("and?"))], tools=False)
    assert [message["role"] for message in own] == ["system", "user", "assistant", "user"]
    assert own[0] == system
    kept = compose(conversation, [user(text("and?"))], tools=False)
    assert kept[0]["content"] == [text("Old rule.")]
    assert compose(Conversation(), [user(text("first"))], tools=False) == [user(text("first"))]


def test_words_that_may_come_from_a_picture_are_kept_from_tools():
    conversation = Conversation([turn("seen", seen=True), turn("typed")])
    asked = [user(text("go on"))]
    assert len(compose(conversation, asked, tools=False)) == 5
    assert [m["content"][0]["text"] for m in compose(conversation, asked, tools=True)] == ["typed", "x", "go on"]


def test_a_turn_keeps_words_alone():
    image, audio = {"type": "image", "image": b"x"}, {"type": "audio", "audio": b"x"}
    assert turn_of(user(image, text("what?")), "a door", 5) == Turn("what?", "a door", 5, seen=True)
    assert turn_of(user(audio), "hello", 5) == Turn("(a recording)", "hello", 5, seen=False)


def test_a_conversation_can_be_forgotten(clock):
    sessions = Sessions(LimitsSettings(), 4096, clock)
    add(sessions, "a", "s", turn("one"))
    add(sessions, "b", "s", turn("two"))
    sessions.forget("a", "s")
    sessions.forget("a", "never there")
    assert questions(sessions, "a", "s") == []
    assert questions(sessions, "b", "s") == ["two"]
