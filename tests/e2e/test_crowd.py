"""Fifty clients that ask twice as much as one box can answer."""

from __future__ import annotations

import json
import time

import pytest

from tests.e2e.conftest import BASE
from tests.e2e.crowd import Crowd, measured

CLIENTS = 50
QUESTION = {"prompt": "When does the gift shop open?", "max_tokens": 4}
ANSWER = "The gift shop opens"


@pytest.mark.parametrize("requests", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_all_are_answered_once_and_every_refusal_is_said(box, requests):
    daemon, port = box
    with Crowd(port, CLIENTS, f"crowd-{requests}") as crowd:
        started = time.monotonic()
        for number in range(200):  # what one box can do: never more waiting than it takes
            crowd.wait_outstanding(14)
            crowd.ask(f"{BASE}/ask", QUESTION, f"warm-{number}", number)
        crowd.wait()
        capacity = 200 / (time.monotonic() - started)
        assert crowd.codes() == {"ok": 200}
        memory = daemon.memory_mb()
        started = time.monotonic()
        for number in range(requests):
            time.sleep(max(0.0, started + number / (2 * capacity) - time.monotonic()))
            crowd.ask(f"{BASE}/ask", QUESTION, f"c{number % CLIENTS}/{number}", number)
        crowd.wait()
        measured(f"{requests} requests at {2 * capacity:.0f} a second", time.monotonic() - started)
        time.sleep(1)
        assert crowd.repeated() == {}
        codes = crowd.codes()
        print(codes, f"memory {memory:.0f} -> {daemon.memory_mb():.0f} MB")
        assert set(codes) <= {"ok", "busy"}
        assert sum(codes.values()) == requests + 200
        for (body,) in crowd.finals.values():
            answer = json.loads(body)
            assert answer.get("text") == ANSWER or answer["error"]["retry_after_s"] >= 1
        assert daemon.memory_mb() - memory < 30


def test_more_at_once_than_waits_is_refused_and_the_clients_are_served_in_turns(box):
    daemon, port = box
    with Crowd(port, 3, "turns") as crowd:
        daemon.pause()
        for number in range(40):  # one client floods, two are modest
            crowd.ask(f"{BASE}/ask", QUESTION, f"flood-{number}", 0)
        for number in range(4):
            crowd.ask(f"{BASE}/ask", QUESTION, f"modest-{number}", 1 + number % 2)
        daemon.go_on()
        crowd.wait()
        busy = {name for name, (body,) in crowd.finals.items() if "error" in json.loads(body)}
        assert busy
        assert all(name.startswith("flood") for name in busy)
        assert crowd.repeated() == {}
