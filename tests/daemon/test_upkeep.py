from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from edge_runtime.daemon.admission import Admission
from edge_runtime.daemon.desk import Desk
from edge_runtime.daemon.local import Busy, LocalRequests
from edge_runtime.daemon.mqtt import Link
from edge_runtime.daemon.pressure import REFUSE, SLOW
from edge_runtime.daemon.requests import Parser
from edge_runtime.daemon.service import Daemon
from edge_runtime.daemon.store import Store
from edge_runtime.daemon.upkeep import Upkeep
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import HttpSettings, LimitsSettings, MqttSettings, Settings, StorageSettings
from edge_runtime.settings_senses import MicrophoneSettings, SpeechSettings


@pytest.fixture
def settings(tmp_path, free_port):
    return Settings(
        mqtt=MqttSettings(host="127.0.0.1", port=free_port, device="box"),
        storage=StorageSettings(state_dir=tmp_path),
        http=HttpSettings(listen="off"),
    )


@pytest.fixture
def parts(settings, tmp_path):
    admission = Admission(2, 2)
    parser = Parser(settings, "fake", 128)
    desk = Desk(Store(tmp_path / "db", 100, 100), admission, parser)
    link = Link(settings.mqtt, {}, 1000, desk)
    upkeep = Upkeep(settings, admission, desk, link)
    return upkeep, admission, LocalRequests(admission, parser)


def parsed(settings, prompt="my secret"):
    return Parser(settings, "fake", 128).parse("ask", json.dumps({"prompt": prompt}).encode())


def submit(parts, settings):
    ends: list[dict[str, Any]] = []
    parts[2].submit(parsed(settings), client="c", rank=1, on_delta=None, on_final=ends.append)
    return ends


def test_each_request_is_one_line_and_one_count(parts, settings, caplog):
    upkeep, admission, _ = parts
    with caplog.at_level(logging.INFO):
        ends = submit(parts, settings)
        running = admission.next()
        running.ticket.books.finish(
            running.ticket,
            {
                "id": running.ticket.id,
                "text": "my secret, too",
                "usage": {"prompt_tokens": 3, "completion_tokens": 4},
                "timing": {"first_token_s": 0.25, "decode_tokens_per_s": 9.0},
            },
        )
        admission.done(0.1)
        submit(parts, settings)
        submit(parts, settings)
        with pytest.raises(EdgeRuntimeError):
            submit(parts, settings)
    assert len(ends) == 1
    (done, refused) = [record.fields for record in caplog.records if record.message == "request"]
    assert (done["outcome"], done["kind"], done["first_token_s"], done["completion_tokens"]) == ("ok", "ask", 0.25, 4)
    assert done["total_s"] >= 0
    assert refused["outcome"] == "busy"
    assert "secret" not in caplog.text
    text = upkeep.metrics.render()
    assert 'edge_runtime_requests_total{kind="ask",outcome="ok"} 1' in text
    assert 'edge_runtime_requests_total{kind="ask",outcome="busy"} 1' in text
    assert 'edge_runtime_tokens_total{direction="completion"} 4' in text
    assert "edge_runtime_queue_waiting 2" in text
    assert "edge_runtime_mqtt_connected 0" in text
    assert "edge_runtime_mqtt_undelivered 0" in text


def test_pressure_slows_watching_and_then_refuses(parts, settings):
    upkeep, admission, _ = parts
    paces: list[float] = []
    upkeep.on_pace = paces.append
    for level in (SLOW, REFUSE):
        upkeep.pressure.level = level
        upkeep._pressed(upkeep.pressure)
    assert paces == [4.0, 16.0]
    with pytest.raises(Busy) as refused:
        submit(parts, settings)
    assert refused.value.code == "busy"
    assert refused.value.retry_after_s == 30
    assert admission.waiting == 0


def test_the_loops_of_a_daemon_answer_their_pokes_and_a_hung_model_does_not(settings, model):
    daemon = Daemon(settings, model, "1")
    watchdog = daemon.upkeep.watchdog
    serving = threading.Thread(target=daemon.run)
    serving.start()
    try:
        for _ in range(4):
            before = [watched.pulse.beats for watched in watchdog._watched]
            watchdog.look()
            wait_for(
                lambda before=before: all(w.pulse.beats > b for w, b in zip(watchdog._watched, before, strict=True))
            )
        assert watchdog.trouble() is None
        held = threading.Event()
        model._wait = lambda _: held.wait(60)  # a step that does not end and looks at nothing
        LocalRequests(daemon._admission, daemon._parser).submit(
            parsed(settings), client="c", rank=1, on_delta=None, on_final=lambda _: None
        )
        wait_for(lambda: daemon._admission.busy)
        for _ in range(4):
            watchdog.look()
            time.sleep(0.1)
        assert watchdog.trouble() == "hung: worker"
        held.set()
        wait_for(lambda: not daemon._admission.busy)
        watchdog.look()
        wait_for(lambda: well(watchdog))
    finally:
        daemon.stop()
        serving.join(20)
    assert not serving.is_alive()


def test_settings_are_read_again(settings, model, caplog):
    daemon = Daemon(settings, model, "1")
    serving = threading.Thread(target=daemon.run)
    heard: list[Settings] = []
    daemon.on_settings["cameras"] = heard.append
    with caplog.at_level(logging.INFO):
        serving.start()
        try:
            wanted = replace(
                settings,
                limits=LimitsSettings(queue=1),
                speech=SpeechSettings(words_per_minute=100),
                microphones=(MicrophoneSettings("kitchen"),),
            )
            daemon.reload(lambda: wanted)
            wait_for(lambda: "settings read again" in caplog.text)
            waiting = "speech.words_per_minute, microphones"
            assert f"changed: limits.queue; after a restart: {waiting}" in caplog.text
            assert caplog.text.count("settings read again") == 1
            assert daemon._parser.settings.limits.queue == 1
            daemon.reload(broken)
            wait_for(lambda: "the settings stay as they were: config.toml:3: no" in caplog.text)
            assert heard == []
        finally:
            daemon.stop()
            serving.join(20)


def well(watchdog):
    watchdog.look()
    return watchdog.trouble() is None


def broken():
    raise EdgeRuntimeError("config.toml:3: no")


def wait_for(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
