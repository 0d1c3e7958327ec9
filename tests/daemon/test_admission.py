from __future__ import annotations

import itertools
import threading
from typing import Any

from edge_runtime.daemon.admission import TEXT, VOICE, WATCHING, Admission, Ticket
from edge_runtime.daemon.requests import Reply

NUMBERS = itertools.count(1)
NOBODY: Any = None


def ticket(name, client="", topic="t", **more):
    return Ticket(seq=next(NUMBERS), id=name, kind="ask", client=client, reply=Reply(topic), books=NOBODY, **more)


def enter(room, name, client="", **more):
    """Whether there was room."""
    if room.reserve(client):
        return False
    room.enter(ticket(name, client, **more))
    return True


def drained(room):
    order = []
    while room._heap:
        order.append(room.next().ticket.id)
        room.done(1.0)
    return order


def test_priority_then_rank_then_arrival():
    room = Admission(10, 10)
    enter(room, "watch", rank=WATCHING)
    enter(room, "text", rank=TEXT)
    enter(room, "text2", rank=TEXT)
    enter(room, "urgent", rank=WATCHING, priority=1)
    enter(room, "voice", rank=VOICE)
    enter(room, "later", rank=VOICE, priority=-1)
    assert drained(room) == ["urgent", "voice", "text", "text2", "watch", "later"]


def test_clients_take_turns():
    room = Admission(10, 10)
    for name in ("a1", "a2", "a3"):
        enter(room, name, "a")
    enter(room, "b1", "b")
    assert drained(room) == ["a1", "b1", "a2", "a3"]
    enter(room, "b2", "b")
    enter(room, "c1", "c")
    assert drained(room) == ["b2", "c1"]


def test_what_the_daemon_died_of_waits_for_all_others():
    room = Admission(10, 10)
    room.enter(ticket("deadly", attempts=1, priority=1000, rank=VOICE), reserved=False)
    enter(room, "plain", priority=-1000)
    assert drained(room) == ["plain", "deadly"]


def test_a_full_room_refuses_and_a_free_place_is_free_again():
    room = Admission(1, 10)
    assert enter(room, "a")
    assert room.reserve("") == "too many requests are waiting"
    assert drained(room) == ["a"]
    assert enter(room, "b")


def test_a_reserved_place_is_taken_until_it_is_released():
    room = Admission(1, 10)
    assert room.reserve("a") is None
    assert room.reserve("b")
    room.release("a")
    assert room.reserve("b") is None


def test_one_client_leaves_room_for_others():
    room = Admission(10, 2)
    assert enter(room, "a1", "a")
    assert enter(room, "a2", "a")
    assert "2 requests of this client" in (room.reserve("a") or "")
    assert enter(room, "b1", "b")
    running = room.next()
    assert room.reserve("a")  # the running one counts
    assert running is not None
    room.done(1.0)
    assert enter(room, "a3", "a")


def test_what_was_accepted_before_a_restart_is_not_refused():
    room = Admission(1, 1)
    for name in ("a", "b", "c"):
        room.enter(ticket(name, "one"), reserved=False)
    assert room.reserve("other")
    assert drained(room) == ["a", "b", "c"]
    assert not room._places


def test_cancel_takes_out_the_waiting_and_asks_the_running_to_stop():
    room = Admission(5, 5)
    enter(room, "a")
    enter(room, "b")
    running = room.next()
    assert [taken.id for taken in room.cancel("b")] == ["b"]
    assert room.cancel("nobody") == []
    assert not running.stop.is_set()
    assert room.cancel("a", topic="another's") == []
    assert not running.stop.is_set()
    assert room.cancel("a", topic="t") == []
    assert running.stop.is_set()
    assert running.reason == "cancelled"
    running.halt("expired")
    assert running.reason == "cancelled"


def test_deadlines_end_the_waiting_and_the_running():
    room = Admission(5, 5)
    assert room.next_deadline() is None
    enter(room, "runs", deadline=50.0)
    enter(room, "late", deadline=40.0)
    enter(room, "patient")
    running = room.next()
    assert room.next_deadline() == 40.0
    assert room.expire(39.0) == []
    assert [taken.id for taken in room.expire(40.0)] == ["late"]
    assert room.next_deadline() == 50.0
    assert room.expire(60.0) == []
    assert running.reason == "expired"
    assert room.next_deadline() is None
    room.done(1.0)
    assert drained(room) == ["patient"]


def test_a_closed_room_takes_no_more_and_gives_out_no_more():
    room = Admission(5, 5)
    enter(room, "kept")
    room.close()
    assert room.next() is None
    assert room.reserve("") == "the daemon is stopping"


def test_next_waits_for_a_request():
    room = Admission(5, 5)
    got = []
    thread = threading.Thread(target=lambda: got.append(room.next()))
    thread.start()
    enter(room, "a")
    thread.join(5)
    assert got[0].ticket.id == "a"
    assert not room.wait_idle(0.01)
    room.stop_running()
    assert got[0].reason == "stopping"
    room.done(1.0)
    assert room.wait_idle(0.01)


def test_retry_after_follows_what_requests_take():
    room = Admission(5, 5)
    before = room.retry_after_s()
    for _ in range(20):
        room.done(60.0)
    assert before == 5
    assert 55 < room.retry_after_s() <= 60
