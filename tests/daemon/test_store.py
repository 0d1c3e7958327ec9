"""The file in which nothing is lost: what is in it after kills, full disks and damage."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from edge_runtime.daemon.store import Answer, NewRequest, Store
from edge_runtime.errors import EdgeRuntimeError

SECRET = b"the safe is behind the picture"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / "requests.db"


def opened(file, remembered=100, remembered_s=3600):
    return Store(file, remembered, remembered_s)


def new(key, payload=SECRET, **more):
    fields = {
        "key": key.encode(),
        "id": key,
        "kind": "ask",
        "client": "c",
        "topic": f"t/{key}",
        "correlation": b"\x00\xff",
        "rank": 1,
        "priority": 0,
        "deadline_s": None,
        "deadline": None,
        "payload": payload,
    }
    return NewRequest(**(fields | more))


def accept(store, *keys, **more):
    with store.taking() as taking:
        return [taking.accept(new(key, **more), mid=7) for key in keys]


def ids(store):
    return [request.id for request in store.requests()]


def contents(file):
    return b"".join(each.read_bytes() for each in file.parent.iterdir())


def test_a_request_becomes_an_answer_and_then_nothing(file):
    store = opened(file)
    first, second = accept(store, "a", "b")
    assert ids(store) == ["a", "b"]
    assert store.begin(first) == SECRET
    answer = store.finish(first, '{"id": "a"}')
    assert (answer.id, answer.topic, answer.correlation, answer.body) == ("a", "t/a", b"\x00\xff", '{"id": "a"}')
    assert ids(store) == ["b"]
    assert store.answers() == [answer]
    store.forget([answer.seq])
    assert store.answers() == []
    store.forget(requests=[second])
    assert ids(store) == []
    store.close()


def test_all_of_it_is_there_after_a_restart(file):
    store = opened(file)
    first, _ = accept(store, "a", "b", priority=5, rank=2)
    answer = store.finish(first, "body")
    store.close()
    store = opened(file)
    request = store.requests()[0]
    assert (request.id, request.kind, request.client, request.topic) == ("b", "ask", "c", "t/b")
    assert (request.correlation, request.rank, request.priority, request.attempts) == (b"\x00\xff", 2, 5, 0)
    assert store.payload(request.seq) == SECRET
    assert store.answers() == [answer]
    with store.taking() as taking:
        assert taking.known(b"a") == (7, True)
        assert taking.known(b"c") is None
    store.close()


def test_starts_are_counted_and_can_be_taken_back(file):
    store = opened(file)
    (seq,) = accept(store, "a")
    store.begin(seq)
    store.begin(seq)
    store.hand_back(seq)
    store.close()
    store = opened(file)
    assert store.requests()[0].attempts == 1
    store.close()


def test_a_refused_request_may_come_again_and_is_known_as_refused(file):
    store = opened(file)
    with store.taking() as taking:
        refusal = taking.refuse(b"a", 9, Answer(None, "a", "t", None, "busy", time.time()))
        assert taking.known(b"a") == (9, False)
    assert store.answers() == [refusal]
    accept(store, "a")
    with store.taking() as taking:
        assert taking.known(b"a") == (7, True)
    store.close()


def test_what_fails_inside_leaves_nothing(file):
    store = opened(file)

    def fail():
        with store.taking() as taking:
            taking.accept(new("a"), 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with store.taking() as taking:
        assert taking.known(b"a") is None
    assert ids(store) == []
    store.close()


def test_ids_are_remembered_by_number_and_by_time_but_for_the_living(file):
    store = opened(file, remembered=3)
    sequence = accept(store, "alive", "dead")
    store.forget([store.finish(sequence[1], "x").seq])
    for number in range(5):
        (seq,) = accept(store, str(number))
        store.forget([store.finish(seq, "x").seq])
    with store.taking() as taking:
        assert taking.known(b"alive")
        assert [name for name in "01234" if taking.known(name.encode())] == ["2", "3", "4"]
        assert not taking.known(b"dead")
    store.close()
    store = opened(file, remembered_s=-1)
    with store.taking() as taking:
        assert taking.known(b"alive")
        assert not taking.known(b"4")
    store.close()


def test_nothing_stays_after_delivery(file):
    store = opened(file)
    (seq,) = accept(store, "a", payload=SECRET * 1000)
    assert SECRET in contents(file)
    answer = store.finish(seq, SECRET.decode())
    store.tidy()
    assert SECRET in contents(file)  # not delivered yet
    store.forget([answer.seq])
    assert store.untidy
    store.tidy()
    assert not store.untidy
    assert SECRET not in contents(file)
    assert sum(each.stat().st_size for each in file.parent.iterdir()) < 100_000
    store.close()


def test_only_the_owner_may_read_it(file):
    store = opened(file)
    accept(store, "a")
    assert all(each.stat().st_mode & 0o077 == 0 for each in file.parent.iterdir())
    store.close()


def test_two_daemons_cannot_share_it(file, monkeypatch):
    monkeypatch.setattr("edge_runtime.daemon.store.LOCK_S", 0.1)
    store = opened(file)
    with pytest.raises(EdgeRuntimeError, match="another daemon uses it"):
        opened(file)
    store.close()


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgeRuntimeError, match=r"storage.state_dir .*file: ") as caught:
        opened(tmp_path / "file" / "requests.db")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["garbage", "middle", "empty header", "later version"])
def test_a_damaged_file_is_set_aside_with_one_line(file, caplog, damage):
    store = opened(file)
    accept(store, *(f"r{number}" for number in range(50)), payload=bytes(5000))
    store.close()
    data = bytearray(file.read_bytes())
    if damage == "garbage":
        file.write_bytes(os.urandom(20_000))
    elif damage == "middle":
        data[4096:20_000] = os.urandom(20_000 - 4096)
        file.write_bytes(data)
    elif damage == "empty header":
        file.write_bytes(bytes(100) + data[100:])
    else:
        with sqlite3.connect(file) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
    with caplog.at_level(logging.INFO):
        store = opened(file)
    assert len(caplog.records) == 1
    assert "set aside as requests.db.damaged" in caplog.text
    assert ids(store) == []
    accept(store, "new")
    store.close()
    assert (file.parent / "requests.db.damaged").exists()
    caplog.clear()
    store = opened(file)
    assert ids(store) == ["new"]
    assert not caplog.records
    store.close()


def test_a_torn_wal_loses_no_more_than_its_torn_end(file):
    code = (
        "import sys, os, signal; from pathlib import Path;"
        "from tests.daemon.test_store import accept, opened;"
        "store = opened(Path(sys.argv[1]));"
        "[accept(store, name) for name in 'abc'];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=False, timeout=60)
    wal = file.with_name(f"{file.name}-wal")
    wal.write_bytes(wal.read_bytes()[:-2000])
    store = opened(file)
    assert ids(store) == ["a", "b"]
    store.close()


def test_a_full_disk_changes_nothing_and_ends_with_the_fullness(file):
    store = opened(file)
    (seq,) = accept(store, "a")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(sqlite3.Error, match="full"):
        accept(store, "b", payload=bytes(100_000))
    assert ids(store) == ["a"]
    answer = store.finish(seq, "still answered")
    store.forget([answer.seq])
    store._db.execute("PRAGMA max_page_count = 1000000")
    accept(store, "b", payload=bytes(100_000))
    assert ids(store) == ["b"]
    store.close()


def test_what_was_taken_in_survives_kill_9(file):
    code = (
        "import sys; from pathlib import Path; from tests.daemon.test_store import accept, opened;"
        "store = opened(Path(sys.argv[1]));\n"
        "for number in range(100_000):\n"
        "    (seq,) = accept(store, str(number))\n"
        "    if number % 3 == 0: store.finish(seq, 'x')\n"
        "    print(number, flush=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True)
    said = [child.stdout.readline() for _ in range(40)]
    child.send_signal(signal.SIGKILL)
    said += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    promised = {line.strip() for line in said if line.endswith("\n")}
    assert len(promised) >= 40
    store = opened(file)
    requests, answers = set(ids(store)), {answer.id for answer in store.answers()}
    assert promised <= requests | answers
    assert not requests & answers
    store.close()


def test_deadlines_hold_over_restarts_and_boots(file, monkeypatch):
    store = opened(file)
    now = time.monotonic()
    accept(store, "a", deadline_s=100.0, deadline=now + 100.0)
    accept(store, "b")
    first, second = store.requests()
    assert store.deadline_of(first) == now + 100.0
    assert store.deadline_of(second) is None
    store.close()
    monkeypatch.setattr("edge_runtime.daemon.store.boot_id", lambda: "another boot")
    store = opened(file)
    assert store.deadline_of(first) == pytest.approx(now + 100.0, abs=30)
    real = time.time
    monkeypatch.setattr("edge_runtime.daemon.store.time.time", lambda: real() - 1e8)  # a clock that was reset
    assert store.deadline_of(first) <= time.monotonic() + 100.0
    monkeypatch.setattr("edge_runtime.daemon.store.time.time", lambda: real() + 1000)
    assert store.deadline_of(first) < time.monotonic()
    store.close()
