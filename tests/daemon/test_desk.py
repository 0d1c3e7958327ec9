"""The desk's books: what is stored, sent, acknowledged and forgotten, and in which order."""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import threading
import time

import pytest

from edge_runtime.daemon.desk import OFFER_FOR_S
from edge_runtime.daemon.store import Store
from tests.daemon.office import Office, code


@pytest.fixture
def office(tmp_path):
    office = Office(tmp_path)
    yield office
    office.store.close()


def test_a_request_is_acknowledged_when_it_is_stored_and_forgotten_when_its_answer_has_come(office):
    office.ask({"id": "a", "prompt": "x"}, correlation=b"c")
    assert office.line.said == [("ack", 1)]
    assert [request.id for request in office.store.requests()] == ["a"]
    office.serve()
    kind, topic, body, correlation, token = office.line.said[1]
    assert (kind, topic, body, correlation) == ("publish", "p/box/answer", {"id": "a", "text": "done"}, b"c")
    assert office.store.requests() == []
    assert len(office.store.answers()) == 1
    office.desk.delivered(token, None)
    office.work()
    assert office.store.answers() == []
    office.work()
    assert not office.store.untidy


def test_a_request_that_cannot_be_stored_is_not_acknowledged_before_it_is_refused(office, monkeypatch, caplog):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("edge_runtime.daemon.store.Taking.accept", full)
        office.send(office.message({"id": "a", "prompt": "x"}), office.message({"id": "b", "prompt": "x"}))
    assert [code(answer) for answer in office.line.answers] == ["busy", "busy"]
    assert [answer[1]["error"]["retry_after_s"] for answer in office.line.answers] == [30, 30]
    assert [said[0] for said in office.line.said] == ["publish", "ack", "publish", "ack"]
    assert caplog.text.count("cannot be written") == 1
    office.deliver_all()
    office.ask({"id": "a", "prompt": "x"})
    assert office.serve() == ["a"]
    assert not office.room._places


def test_one_that_does_not_fit_on_the_disk_does_not_take_the_others_with_it(office):
    pages = office.store._db.execute("PRAGMA page_count").fetchone()[0]
    office.store._db.execute(f"PRAGMA max_page_count = {pages + 3}")
    small = office.message({"id": "small", "prompt": "x"})
    office.send(small, office.message({"id": "large", "prompt": "x" * 50_000}))
    assert [(answer[1]["id"], code(answer)) for answer in office.line.answers] == [("large", "busy")]
    assert office.line.acks == [1, 2]
    assert office.serve() == ["small"]


def test_an_answer_that_cannot_be_stored_is_sent_and_its_request_forgotten_afterwards(office, monkeypatch):
    office.ask({"id": "a", "prompt": "x"})

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "finish", full)
        patch.setattr(Store, "begin", full)
        office.serve()
        patch.setattr(Store, "forget", full)
        office.deliver_all()
    assert office.line.answers == [("p/box/answer", {"id": "a", "text": "done"})]
    assert len(office.store.requests()) == 1
    assert 0 < office.desk._idle_s() < 10
    office.desk.delivered(None, None)
    office.desk._settle([])
    assert office.store.requests() == []


def test_refusals_are_stored_like_answers(office):
    office.send(office.message(b"{"), office.message({"id": "x", "promt": 1}))
    assert [code(answer) for answer in office.line.answers] == ["bad_request", "bad_request"]
    assert office.line.answers[1][1]["id"] == "x"
    assert [said[0] for said in office.line.said] == ["publish", "publish", "ack", "ack"]
    assert len(office.store.answers()) == 2
    office.restart()
    assert [code(answer) for answer in office.line.answers] == ["bad_request", "bad_request"]
    office.deliver_all()
    assert office.store.answers() == []


def test_what_waits_past_its_deadline_is_expired_at_once(office):
    office.ask({"id": "late", "prompt": "x", "deadline_s": 0})
    office.work()
    assert code(office.line.answers[0]) == "expired"
    assert office.store.requests() == []


def test_cancel_answers_what_waits_and_is_acknowledged(office):
    office.send(
        office.message({"id": "a", "prompt": "x"}),
        office.message({"id": "a"}, name="cancel"),
        office.message({"id": "nobody"}, name="cancel"),
        office.message(b"{", name="cancel"),
    )
    assert office.line.acks == [1, 2, 3, 4]
    assert [(answer[1]["id"], code(answer)) for answer in office.line.answers] == [("a", "cancelled")]
    assert office.serve() == []


def test_everything_is_taken_up_again_after_a_restart(office):
    office.ask({"id": "answered", "prompt": "x"})
    office.serve()
    office.ask({"id": "waits", "prompt": "x", "priority": 3})
    office.restart()
    assert [answer[1]["id"] for answer in office.line.answers] == ["answered"]
    assert office.room._heap[0][1].priority == 3
    assert office.serve() == ["waits"]


def test_a_request_that_ends_the_daemon_again_and_again_is_given_up(office, caplog):
    office.ask({"id": "deadly", "prompt": "x"})
    office.ask({"id": "harmless", "prompt": "x"})
    for _ in range(2):
        while (ticket := office.room.next().ticket).id != "deadly":
            office.desk.finish(ticket, {"id": ticket.id, "text": "done"})
            office.room.done(0.1)
        office.desk.begin(ticket)
        office.restart()  # as if it had been killed
    assert [(answer[1]["id"], code(answer)) for answer in office.line.answers if "error" in answer[1]] == [
        ("deadly", "internal")
    ]
    assert "ended 2 times" in caplog.text
    assert office.store.requests() == []


def test_a_graceful_stop_is_not_the_requests_fault(office):
    office.ask({"id": "a", "prompt": "x"})
    for _ in range(5):
        ticket = office.room.next().ticket
        office.desk.begin(ticket)
        office.desk.hand_back(ticket)
        office.restart()
    assert office.serve() == ["a"]


def test_what_comes_while_the_daemon_stops_stays_with_the_broker(office):
    office.room.close()
    office.ask({"id": "a", "prompt": "x"})
    assert office.line.said == []
    assert office.store.requests() == []


def test_an_answer_that_the_broker_does_not_take_is_offered_again_and_given_up_in_the_end(office, caplog):
    office.ask({"id": "a", "prompt": "x"})
    office.serve()
    office.deliver_all("not authorized")
    assert len(office.store.answers()) == 1
    office.work()
    assert 20 < office.desk._idle_s() <= 30
    seq = office.line.tokens[0].seq
    office.desk._parked[seq] = (0.0, office.desk._parked[seq][1])
    office.work()
    assert len(office.line.answers) == 2
    old = dataclasses.replace(office.line.tokens[1], written=time.time() - OFFER_FOR_S - 1)
    office.desk.delivered(old, "not authorized")
    office.work()
    assert office.store.answers() == []
    assert "given up" in caplog.text


def test_too_much_in_the_inbox_holds_up_the_line(office):
    limit = office.desk._most_held
    office.desk._held = limit
    came = threading.Event()
    message = office.message(b"x")

    def bring():
        office.desk.arrived(message)
        came.set()

    threading.Thread(target=bring, daemon=True).start()
    assert not came.wait(0.1)
    loop = threading.Thread(target=office.desk.run, daemon=True)
    with office.desk._changed:
        office.desk._held = 0
        office.desk._changed.notify_all()
    assert came.wait(20)
    loop.start()
    office.desk.close()
    loop.join(20)
    assert not loop.is_alive()
    assert office.line.acks == [1]


def test_the_desk_sleeps_when_there_is_nothing_to_do(office):
    office.work()
    assert office.desk._idle_s() is None
    office.ask({"id": "a", "prompt": "x"})
    office.work()
    assert office.desk._idle_s() is None  # it waits for the worker


def test_logs_name_requests_and_never_quote_them(office, caplog):
    with caplog.at_level(logging.DEBUG):
        office.ask({"id": "a", "prompt": "my secret"})
        refused = []
        office.desk._admission.on_refusal = lambda *what: refused.append(what)
        office.ask({"id": "b", "promt": "my secret"})
        office.serve()
    assert refused == [("ask", "b", "bad_request")]
    assert "secret" not in caplog.text
