from __future__ import annotations

import logging
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from edge_runtime.daemon.watchdog import HUNG, Beating, Pulse, Watchdog, name_thread


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """What systemd would hear: a function that gives it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def heard():
            words = []
            while True:
                try:
                    words.append(listening.recv(100))
                except BlockingIOError:
                    return words

        yield heard


def answering(watchdog, name):
    """A loop that goes round when it is poked."""
    pulses: list[Pulse] = []

    def go_round():
        pulses[0].beat()

    pulses.append(watchdog.watch(name, go_round))


def test_a_loop_that_answers_its_poke_feeds_the_watchdog(systemd):
    watchdog = Watchdog(60)
    answering(watchdog, "loop")
    for _ in range(5):
        watchdog.look()
    assert systemd() == [b"WATCHDOG=1"] * 5
    assert watchdog.trouble() is None


def test_one_silent_loop_starves_it_and_a_beat_mends_it(systemd, caplog):
    watchdog = Watchdog(60)
    answering(watchdog, "good")
    silent = watchdog.watch("silent", lambda: None)
    with caplog.at_level(logging.WARNING):
        for _ in range(HUNG + 4):
            watchdog.look()
        assert watchdog.trouble() == "hung: silent"
        fed = systemd()
        assert len(fed) == HUNG
        silent.beat()
        watchdog.look()
    assert watchdog.trouble() is None
    assert systemd() == [b"WATCHDOG=1"]
    assert [record.levelname for record in caplog.records] == ["CRITICAL", "WARNING"]


def test_work_that_looks_at_its_cancellation_is_alive(systemd):
    watchdog = Watchdog(60)
    pulse = watchdog.watch("engine", lambda: None)
    cancel = Beating(pulse.beat)
    for _ in range(6):
        assert not cancel.is_set()
        watchdog.look()
    assert len(systemd()) == 6
    cancel.set()
    assert cancel.is_set()


def test_the_thread_looks_four_times_in_the_time_that_systemd_waits(systemd, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    watchdog = Watchdog()
    answering(watchdog, "loop")
    watchdog.start()
    deadline = time.monotonic() + 20
    fed: list[bytes] = []
    while len(fed) < 3 and time.monotonic() < deadline:
        fed += systemd()
        time.sleep(0.01)
    watchdog.close()
    assert fed[:3] == [b"WATCHDOG=1"] * 3


@pytest.mark.parametrize(("usec", "pid"), [("", None), ("soon", None), ("1000000", "1")])
def test_a_watchdog_that_is_not_ours_is_none(monkeypatch, usec, pid):
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid or str(os.getpid()))
    assert Watchdog()._round_s == 45.0


def test_threads_have_names_that_ps_shows():
    seen = []

    def body():
        name_thread("some-loop")
        seen.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text(encoding="ascii"))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == ["some-loop\n"]
