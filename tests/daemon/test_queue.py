from __future__ import annotations

import threading

from edge_runtime.daemon.queue import RequestQueue
from edge_runtime.daemon.requests import Reply, Request


def request(name, priority=0, once=True):
    return Request("ask", name, name, once, Reply("t"), priority=priority)


def drained(queue):
    queue_order = []
    while queue._heap:
        queue_order.append(queue.next().request.id)
        queue.done(1.0)
    return queue_order


def test_first_come_first_served_within_a_priority():
    queue = RequestQueue(10)
    for name, priority in [("a", 0), ("b", 5), ("c", 0), ("d", 5)]:
        assert queue.put(request(name, priority)) == "accepted"
    assert drained(queue) == ["b", "d", "a", "c"]


def test_a_full_queue_is_busy_and_the_refused_one_may_come_again():
    queue = RequestQueue(1)
    assert queue.put(request("a")) == "accepted"
    assert queue.put(request("b")) == "busy"
    assert drained(queue) == ["a"]
    assert queue.put(request("b")) == "accepted"


def test_a_repeated_request_is_known_while_it_waits_runs_and_after():
    queue = RequestQueue(5)
    queue.put(request("a"))
    assert queue.put(request("a")) == "repeated"
    queue.next()
    assert queue.put(request("a")) == "repeated"
    queue.done(1.0)
    assert queue.put(request("a")) == "repeated"
    assert queue.put(request("a", once=False)) == "accepted"


def test_cancel_takes_out_the_waiting_and_asks_the_running_to_stop():
    queue = RequestQueue(5)
    queue.put(request("a"))
    queue.put(request("b"))
    running = queue.next()
    waiting = queue.cancel("b")
    assert waiting is not None
    assert waiting.id == "b"
    assert queue.cancel("nobody") is None
    assert not running.stop.is_set()
    assert queue.cancel("a") is None
    assert running.stop.is_set()
    assert running.reason == "cancelled"


def test_closing_returns_what_waited_and_ends_the_worker():
    queue = RequestQueue(5)
    queue.put(request("low", -1))
    queue.put(request("high", 1))
    assert [entry.id for entry in queue.close()] == ["high", "low"]
    assert queue.next() is None
    assert queue.put(request("late")) == "busy"


def test_next_waits_for_a_request():
    queue = RequestQueue(5)
    got = []
    thread = threading.Thread(target=lambda: got.append(queue.next()))
    thread.start()
    queue.put(request("a"))
    thread.join(5)
    assert got[0].request.id == "a"
    assert not queue.wait_idle(0.01)
    queue.done(1.0)
    assert queue.wait_idle(0.01)


def test_retry_after_follows_what_requests_take():
    queue = RequestQueue(5)
    before = queue.retry_after_s()
    for _ in range(20):
        queue.done(60.0)
    assert before == 5
    assert 55 < queue.retry_after_s() <= 60
