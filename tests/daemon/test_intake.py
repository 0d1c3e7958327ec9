"""What becomes of a message: which two are the same request, whose it is, and what is refused."""

from __future__ import annotations

import dataclasses
import time

import pytest

from edge_runtime.daemon.admission import VOICE
from edge_runtime.daemon.intake import client_of
from edge_runtime.daemon.requests import Parser
from tests.daemon.office import Office, code


@pytest.fixture
def office(tmp_path):
    office = Office(tmp_path)
    yield office
    office.store.close()


def test_a_repeated_id_is_answered_once_even_after_a_restart(office):
    for _ in range(3):
        office.ask({"id": "same", "prompt": "x"})
    office.send(office.message({"id": "same", "prompt": "y"}), office.message({"id": "same", "prompt": "z"}))
    assert office.line.acks == [1, 2, 3, 4, 5]
    assert office.serve() == ["same"]
    office.ask({"id": "same", "prompt": "x"})
    office.deliver_all()
    office.restart()
    office.ask({"id": "same", "prompt": "x"})
    assert office.serve() == []
    assert office.line.answers == []


def test_an_id_is_its_requesters_own(office):
    office.ask({"id": "1", "prompt": "x"}, response_topic="mine")
    office.ask({"id": "1", "prompt": "x"}, response_topic="yours")
    assert office.serve() == ["1", "1"]
    assert [topic for topic, _ in office.line.answers] == ["mine", "yours"]


def test_without_an_id_only_the_brokers_word_makes_two_messages_one(office):
    first = office.ask({"prompt": "x"}, correlation=b"1")
    office.ask({"prompt": "x"}, correlation=b"1")
    assert office.serve() == ["1", "1"]
    office.restart()
    office.send(dataclasses.replace(first, repeated=True))
    assert office.serve() == []
    office.ask({"prompt": "x"}, correlation=b"1", repeated=True)  # never came before, for all its look
    assert office.serve() == ["1"]


def test_who_was_told_busy_may_ask_again_but_a_second_delivery_is_not_asking(office):
    for name in ("a", "b"):
        office.ask({"id": name, "prompt": "x"})
    refused = office.ask({"id": "c", "prompt": "x"})
    assert code(office.line.answers[-1]) == "busy"
    assert office.serve() == ["a", "b"]
    office.restart()
    office.send(dataclasses.replace(refused, repeated=True))
    assert office.serve() == []
    again = office.ask({"id": "c", "prompt": "x"})
    office.restart()
    office.send(dataclasses.replace(again, repeated=True))
    assert office.serve() == ["c"]


def test_more_than_the_room_holds_is_busy_and_says_when(office):
    for name in ("a", "b", "c"):
        office.ask({"id": name, "prompt": "x"})
    (busy,) = office.line.answers
    assert (busy[1]["id"], code(busy)) == ("c", "busy")
    assert busy[1]["error"]["retry_after_s"] >= 1


def test_clients_are_told_apart_as_well_as_can_be():
    assert client_of("reply/1", "a/1") == client_of("reply/1", "b/2") != client_of("reply/2", "a/1")
    assert client_of(None, "panel/1") == client_of(None, "panel/2") != client_of(None, "door/1")
    assert client_of(None, "1") == client_of(None, None) == ""


def test_the_soonest_of_deadline_and_expiry_counts(office):
    office.ask({"id": "a", "prompt": "x", "deadline_s": 5}, expiry_s=100.0)
    office.ask({"id": "b", "prompt": "x", "deadline_s": 50}, expiry_s=7.0)
    left = [ticket.deadline - time.monotonic() for _, ticket in office.room._heap]
    assert left == pytest.approx([5, 7], abs=4)
    assert office.desk._idle_s() <= 5


def test_voice_is_known_by_its_sound(office, wav):
    office.ask({"id": "text", "prompt": "x"})
    office.ask(wav, name="transcribe")
    assert office.room.next().ticket.rank == VOICE


@pytest.mark.parametrize(
    "topic", ["a/#", "+/b", "", "$SYS/x", "p/box/ask", "p/box/cancel", "p/box/status", "x\0y", "t" * 70_000]
)
def test_a_response_topic_that_cannot_be_is_told_on_the_common_one(office, topic):
    office.ask({"id": "a", "prompt": "x"}, response_topic=topic)
    assert [(name, code((name, body))) for name, body in office.line.answers] == [("p/box/answer", "bad_request")]
    assert "response topic" in office.line.answers[0][1]["error"]["message"]


def test_a_payload_that_was_too_large_to_keep_is_told_so(office):
    office.ask(b"", size=1_000_000)
    assert code(office.line.answers[0]) == "too_large"
    assert "1,000,000" in office.line.answers[0][1]["error"]["message"]


def test_what_the_parser_dies_of_is_internal_and_does_not_come_again(office, monkeypatch):
    def die(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(Parser, "parse", die)
    office.ask({"id": "a", "prompt": "x"})
    assert code(office.line.answers[0]) == "internal"
    assert office.line.acks == [1]
