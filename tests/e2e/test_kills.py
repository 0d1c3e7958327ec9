"""kill -9 of the daemon, again and again, while people ask."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from pathlib import Path

import pytest

import edge_runtime
from tests.conftest import MqttClient
from tests.e2e.conftest import BASE, wait_online
from tests.e2e.crowd import Crowd, long_recording, measured, mosquitto_with, since

ASSETS = Path(edge_runtime.__file__).parent / "demo_assets"
CLIENTS = 5
RATE = 30.0


def bodies():
    """What is asked in turn: typed, seen, spoken, streamed, and files as they are."""
    sign, voice = ((ASSETS / name).read_bytes() for name in ("sign.png", "voice.wav"))
    encoded = [base64.b64encode(data).decode() for data in (sign, voice)]
    return [
        ("ask", {"prompt": "When does the gift shop open?"}),
        ("ask", {"prompt": "Until what time is the zoo open?", "stream": True, "session": "s"}),
        ("ask", {"prompt": "Read the sign.", "images": [encoded[0]]}),
        ("ask", {"prompt": "", "audio": encoded[1], "priority": 1}),
        ("ask", {"prompt": "How many days are in a week?", "deadline_s": 600}),
    ]


class Load:
    """Asks at a steady rate, whatever happens to the daemon, until the block ends."""

    def __init__(self, crowd, seed):
        self.crowd, self.rng, self.done = crowd, random.Random(seed), threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join(30)

    def run(self):
        what = bodies()
        number = 0
        while not self.done.wait(self.rng.expovariate(RATE)):
            topic, body = self.rng.choice(what)
            self.crowd.ask(f"{BASE}/{topic}", body, f"c{number % CLIENTS}/{number}", number)
            number += 1


def check(crowd):
    """Each request ended in one answer or one error; what was heard twice is the same to the letter."""
    repeated = crowd.repeated()
    print(f"{len(crowd.sent)} requests, {crowd.codes()}, {len(repeated)} heard again")
    for name, heard in repeated.items():
        assert len(set(heard)) == 1, (name, heard)
    assert set(crowd.codes()) <= {"ok", "busy", "internal"}
    assert crowd.codes()["ok"] > 0
    assert set(crowd.finals) == set(crowd.sent)


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_loses_nothing(tmp_path, free_port, serve, kills):
    rng = random.Random(kills)
    # By default mosquitto drops what waits for one client beyond a thousand messages.
    with mosquitto_with(tmp_path, free_port, "allow_anonymous true", "max_queued_messages 0"):
        daemon = serve(free_port, EDGE_RUNTIME_LIMITS__QUEUE="64", EDGE_RUNTIME_LIMITS__PER_CLIENT="64")
        client = MqttClient(free_port)
        wait_online(client)
        with Crowd(free_port, CLIENTS) as crowd:
            with Load(crowd, kills):
                for number in range(kills):
                    if number % 2:  # every other time at work, else at any moment of the start, too
                        client.wait(f"{BASE}/status", lambda message: message.payload == b"online", timeout_s=120)
                    time.sleep(rng.uniform(0.0, 1.5))
                    daemon.kill()
                    daemon.start()
            crowd.wait()
            time.sleep(1)
            check(crowd)
        client.close()
    assert "Traceback" not in daemon.log
    assert "set aside" not in daemon.log
    daemon.stop()


def test_a_restart_drops_nothing_and_takes_little(mosquitto, mqtt_client, serve):
    daemon = serve(mosquitto.port)
    wait_online(mqtt_client)
    with Crowd(mosquitto.port, CLIENTS) as crowd:
        with Load(crowd, 1):
            time.sleep(0.5)
            stopping = daemon.stop()
            started = time.monotonic()
            daemon.start()
            mqtt_client.wait(f"{BASE}/status", lambda message: message.payload == b"online", timeout_s=120)
            measured("SIGTERM until the process has ended", stopping)
            measured("start of the process until online", since(started))
            time.sleep(0.5)
        crowd.wait()
        assert crowd.repeated() == {}
        check(crowd)
    daemon.stop()


@pytest.mark.parametrize("attempts", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_request_that_kills_the_daemon_is_given_up_and_the_others_are_answered(
    mosquitto, mqtt_client, serve, attempts
):
    daemon = serve(mosquitto.port, EDGE_RUNTIME_LIMITS__ATTEMPTS=str(attempts))
    wait_online(mqtt_client)
    with Crowd(mosquitto.port, 2) as crowd:
        crowd.ask(f"{BASE}/transcribe", long_recording(500), "deadly")
        for attempt in range(attempts):
            while daemon.log.count("taken up from before") < attempt:
                time.sleep(0.05)
            daemon.wait_busy()
            crowd.ask(f"{BASE}/ask", {"prompt": "When does the zoo open?"}, f"waits-{attempt}", 1)
            daemon.kill()
            daemon.start()
        crowd.wait()
        assert json.loads(crowd.finals["deadly"][0])["error"]["code"] == "internal"
        assert crowd.codes() == {"ok": attempts, "internal": 1}
        assert crowd.repeated() == {}
    assert f"ended {attempts} times" in daemon.log
    daemon.stop()
