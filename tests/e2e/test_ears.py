"""Somebody speaks into a real sound server, and hears the daemon answer; the sound server dies and comes back."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import edge_runtime
from tests.e2e.conftest import BASE, wait_online
from tests.e2e.crowd import measured
from tests.perception.sounds import SoundServer, needs, silence, speech

ASSETS = Path(edge_runtime.__file__).parent / "demo_assets"
NAMES = ("PULSE_SERVER", "PULSE_COOKIE", "ALSA_CONFIG_PATH")
KITCHEN = {"EDGE_RUNTIME_MICROPHONES__0__NAME": "kitchen", "EDGE_RUNTIME_SPEECH__VOICE": "en-us"}
VOICE_MODE = {**KITCHEN, "EDGE_RUNTIME_MICROPHONES__0__MODE": "voice"}
QUESTION = "until what time is the zoo open"


@pytest.fixture
def sound_server(tmp_path):
    needs("espeak-ng")
    with pytest.MonkeyPatch.context() as environment:
        folder = tmp_path / "sound"
        folder.mkdir()
        server = SoundServer(folder, environment)
        yield server
        server.close()


def start(serve, port, **settings):
    return serve(port, **settings, **{name: os.environ[name] for name in NAMES})


def said():
    """The demo's question at the loudness of somebody in a room, and the pause after it."""
    samples, rate = soundfile.read(ASSETS / "voice.wav", dtype="float32")
    assert rate == 16_000
    return np.concatenate([samples * np.float32(0.1 / np.sqrt((samples**2).mean())), silence(1.5)])


def body(client, topic, timeout_s=60):
    return json.loads(client.wait(f"{BASE}/{topic}", timeout_s=timeout_s).payload)


def status(client, value, timeout_s=60):
    client.wait(f"{BASE}/microphone/kitchen/status", lambda message: message.payload == value, timeout_s)


def ends(samples):
    """Seconds from the beginning of a sound to the end of what is said in it."""
    return np.flatnonzero(np.abs(samples) > 0.01)[-1] / 16_000


def test_a_spoken_question_is_written_down_answered_and_spoken(sound_server, mosquitto, mqtt_client, serve):
    daemon = start(serve, mosquitto.port, **VOICE_MODE)
    wait_online(mqtt_client)
    status(mqtt_client, b"online")
    room = sound_server.listen()
    question = said()
    began = time.monotonic()
    sound_server.play(question)
    transcript = body(mqtt_client, "event/transcript")
    heard = time.monotonic() - began - ends(question)
    print(f"measured: end of speech -> event/transcript: {heard:.2f} s, of which the pause is 0.7 s")
    assert transcript["text"].lower().rstrip("?") == QUESTION
    assert (transcript["microphone"], transcript["trigger"]) == ("kitchen", "voice")
    answer = body(mqtt_client, "answer")
    assert "6 pm" in answer["text"]
    assert (answer["id"], answer["microphone"]) == (transcript["id"], "kitchen")
    delta = body(mqtt_client, "answer/delta")
    assert (delta["id"], delta["seq"]) == (answer["id"], 0)
    deadline = time.monotonic() + 20
    while not room.loud() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert room.loud()
    print(f"measured: end of speech -> the answer is heard: {room.loud()[0] - began - ends(question):.2f} s")
    room.close()
    daemon.stop()
    assert "Traceback" not in daemon.log


def test_a_request_makes_a_microphone_listen_and_is_answered_once(sound_server, mosquitto, mqtt_client, serve):
    daemon = start(
        serve, mosquitto.port, **KITCHEN, EDGE_RUNTIME_MICROPHONES__0__PATIENCE_S="2", EDGE_RUNTIME_SPEECH__ENGINE="off"
    )
    wait_online(mqtt_client)
    status(mqtt_client, b"online")
    mqtt_client.publish(f"{BASE}/ask", json.dumps({"id": "pushed", "audio": {"microphone": "kitchen"}}))
    sound_server.play(np.concatenate([silence(0.5), said()]))
    answer = body(mqtt_client, "answer")
    assert answer["id"] == "pushed"
    assert answer["text"]
    assert answer["usage"]["prompt_tokens"] > 40  # the sound has 25 tokens a second
    mqtt_client.publish(f"{BASE}/transcribe", json.dumps({"id": "written", "microphone": "kitchen"}))
    sound_server.play(np.concatenate([silence(0.5), said()]))
    assert body(mqtt_client, "answer")["text"].lower().rstrip("?") == QUESTION
    mqtt_client.publish(f"{BASE}/ask", json.dumps({"id": "silent", "audio": {"microphone": "kitchen"}}))
    error = body(mqtt_client, "answer")["error"]
    assert (error["code"], error["message"]) == ("cancelled", "microphone kitchen: nobody spoke")
    mqtt_client.publish(f"{BASE}/ask", json.dumps({"id": "given up", "audio": {"microphone": "kitchen"}}))
    time.sleep(0.5)
    mqtt_client.publish(f"{BASE}/cancel", json.dumps({"id": "given up"}))
    assert body(mqtt_client, "answer", 3)["error"]["code"] == "cancelled"
    daemon.stop()
    assert "Traceback" not in daemon.log


def test_speech_during_an_answer_ends_it(sound_server, mosquitto, mqtt_client, serve):
    # The microphone does not hear the loudspeaker here, as with an echo canceller.
    settings = {**VOICE_MODE, "EDGE_RUNTIME_MICROPHONES__0__ECHO_CANCELLED": "true"}
    daemon = start(serve, mosquitto.port, **settings, EDGE_RUNTIME_SPEECH__WORDS_PER_MINUTE="80")
    wait_online(mqtt_client)
    status(mqtt_client, b"online")
    room = sound_server.listen()
    mqtt_client.publish(f"{BASE}/ask", json.dumps({"prompt": "x"}))  # everything is loaded
    body(mqtt_client, "answer")
    sound_server.play(said())
    body(mqtt_client, "event/transcript")
    deadline = time.monotonic() + 30
    while not room.loud() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert room.loud()
    question = said()
    began = time.monotonic()
    sound_server.play(question)
    second = body(mqtt_client, "event/transcript")
    assert second["trigger"] == "barge-in"
    onset = began + np.flatnonzero(np.abs(question) > 0.01)[0] / 16_000
    quiet = max(when for when in room.loud() if when < began + ends(question) + 0.5)
    print(f"measured: beginning of speech -> silence of the answer: {1000 * (quiet - onset):.0f} ms")
    assert quiet < began + ends(question)
    assert "6 pm" in body(mqtt_client, "answer")["text"]
    room.close()
    daemon.stop()


@pytest.mark.parametrize("away_s", [0, pytest.param(20, marks=pytest.mark.slow)])
def test_a_sound_server_that_dies_comes_back(sound_server, mosquitto, mqtt_client, serve, away_s):
    daemon = start(serve, mosquitto.port, **VOICE_MODE)
    wait_online(mqtt_client)
    status(mqtt_client, b"online")
    sound_server.kill()
    status(mqtt_client, b"offline")
    mqtt_client.publish(f"{BASE}/ask", json.dumps({"audio": {"microphone": "kitchen"}}))
    error = body(mqtt_client, "answer")["error"]
    assert error["code"] == "internal"
    assert "microphone kitchen is not there" in error["message"]
    time.sleep(away_s)
    began = time.monotonic()
    sound_server.start()
    status(mqtt_client, b"online")
    measured(f"sound server killed, away for {away_s} s", time.monotonic() - began)
    sound_server.play(np.concatenate([silence(0.5), said()]))
    assert body(mqtt_client, "event/transcript")["text"].lower().rstrip("?") == QUESTION
    assert daemon.log.count("is away") <= 2
    daemon.stop()
    assert "Traceback" not in daemon.log


@pytest.mark.slow
@pytest.mark.parametrize("cancelled", [False, True])
def test_the_box_does_not_answer_itself(sound_server, mosquitto, mqtt_client, serve, cancelled):
    """The microphone hears the loudspeaker: it is deaf meanwhile, or has an echo canceller."""
    sound_server.control("load-module", "module-loopback", "source=out.monitor", "sink=room", "latency_msec=60")
    if cancelled:
        modules = ("aec_method=webrtc", "source_master=mic", "sink_master=out", "source_name=clean", "sink_name=heard")
        sound_server.control("load-module", "module-echo-cancel", *modules)
        sound_server.control("set-default-source", "clean")
        sound_server.control("set-default-sink", "heard")
    daemon = start(serve, mosquitto.port, **VOICE_MODE)
    wait_online(mqtt_client)
    status(mqtt_client, b"online")
    time.sleep(3)  # the echo canceller is asked about
    room = sound_server.listen()
    sound_server.play(said())
    body(mqtt_client, "event/transcript")
    assert body(mqtt_client, "answer")["text"]
    deadline = time.monotonic() + 20
    while not room.loud() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert room.loud()  # it was spoken
    with pytest.raises(AssertionError, match="nothing on"):
        body(mqtt_client, "event/transcript", 6)
    room.close()
    daemon.stop()
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_a_wake_word_begins_and_what_follows_is_heard(sound_server, mosquitto, mqtt_client, serve):
    pytest.importorskip("pymicro_wakeword", reason="the extra wake is not installed")
    words = {"EDGE_RUNTIME_MICROPHONES__0__MODE": "wake-word", "EDGE_RUNTIME_MICROPHONES__0__WAKE_WORDS": "hey_jarvis"}
    daemon = start(serve, mosquitto.port, **KITCHEN, **words)
    wait_online(mqtt_client)
    status(mqtt_client, b"online")
    sound_server.play(said()).wait()  # nobody was called
    with pytest.raises(AssertionError, match="nothing on"):
        body(mqtt_client, "event/transcript", 3)
    sound_server.play(np.concatenate([silence(0.5), speech("hey jarvis", "flite:slt"), silence(0.6), said()]))
    transcript = body(mqtt_client, "event/transcript")
    assert (transcript["trigger"], transcript["wake_word"]) == ("wake", "Hey Jarvis")
    assert transcript["text"]  # the pre-roll has the end of a word that the small model has never heard
    assert transcript["duration"] > 1.5
    assert body(mqtt_client, "answer")["microphone"] == "kitchen"
    daemon.stop()
    assert "Traceback" not in daemon.log


def test_a_text_is_read_aloud_at_request(sound_server, mosquitto, mqtt_client, serve):
    daemon = start(serve, mosquitto.port, **KITCHEN)
    wait_online(mqtt_client)
    room = sound_server.listen()
    mqtt_client.publish(f"{BASE}/say", "Dinner is ready.")
    deadline = time.monotonic() + 20
    while not room.loud() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert room.loud()
    room.close()
    daemon.stop()
