"""Answers read aloud into a real sound server, by the real programs."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.ear import Ear, EarOptions
from edge_runtime.perception.echo import Gate, echo_cancellation
from edge_runtime.perception.speaker import Speaker
from edge_runtime.perception.voice import Espeak, find_voice
from tests.perception.sounds import needs, silence, speech
from tests.perception.test_microphone import Heard, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.perception.sounds import SoundServer

LONG = "This is a long answer which nobody wants to hear to its end, because something else has come up since then."


@pytest.fixture
def voice() -> Espeak:
    needs("espeak-ng")
    found = find_voice("en-us")
    assert isinstance(found, Espeak)
    return found


def test_the_first_sentence_is_heard_while_the_second_is_written(sound_server: SoundServer, voice: Espeak):
    gate = Gate(tail_s=0.1)
    speaker = Speaker(voice, gate=gate)
    recorder = sound_server.listen()
    speech = speaker.begin()
    speech.push("The light is on. ")
    until(recorder.loud)
    assert (speaker.speaking, gate.closed) == (True, True)
    speech.push("The door is open.")
    speech.finish()
    written = time.monotonic()
    assert speech.over.wait(10)
    assert not speech.cancelled
    assert recorder.loud()[-1] > written + 0.5
    until(lambda: not gate.closed, 2)
    assert not speaker.speaking
    assert speaker.status.state == "open"
    recorder.close()


@pytest.mark.slow
def test_all_of_it_is_heard(sound_server: SoundServer, voice: Espeak):
    recorder = sound_server.listen()
    expected = speech("Turn on the light.")
    assert Speaker(voice).say("Turn on the light.").over.wait(10)
    time.sleep(0.2)
    recorder.close()
    loud = recorder.loud()
    assert loud[-1] - loud[0] == pytest.approx(len(expected) / 16_000, abs=0.15)


def test_it_is_silent_within_100_ms_of_being_cancelled(sound_server: SoundServer, voice: Espeak):
    speaker = Speaker(voice, gate=(gate := Gate(tail_s=0.0)))
    recorder = sound_server.listen()
    speech = speaker.say(LONG)
    until(recorder.loud)
    time.sleep(0.5)
    cancelled = time.monotonic()
    speaker.cancel()
    assert time.monotonic() - cancelled < 0.05
    assert speech.over.wait(2)
    assert speech.cancelled
    time.sleep(0.5)
    recorder.close()
    assert recorder.loud()[-1] < cancelled + 0.1
    assert not gate.closed


def test_a_new_speech_takes_the_place_of_the_old_one(sound_server: SoundServer, voice: Espeak):
    speaker = Speaker(voice)
    first = speaker.say(LONG)
    second = speaker.say("No.")
    assert second.over.wait(10)
    assert (first.cancelled, second.cancelled, second.heard) == (True, False, True)


def test_one_cancelled_before_it_began_is_never_heard(sound_server: SoundServer, voice: Espeak):
    recorder = sound_server.listen()
    speech = Speaker(voice).begin()
    speech.cancel()
    speech.push(LONG)
    speech.finish()
    assert speech.over.wait(5)
    time.sleep(0.3)
    recorder.close()
    assert not speech.heard
    assert recorder.loud() == []


def test_no_loudspeaker_harms_nobody_and_it_is_found_when_it_is_back(sound_server: SoundServer, voice: Espeak):
    speaker = Speaker(voice)
    speech = speaker.say(LONG)
    until(lambda: speech.heard)
    sound_server.kill()
    assert speech.over.wait(5)
    assert not speech.cancelled
    assert speaker.snapshot()["state"] == "lost"
    speech = speaker.say("Nobody hears this.")
    assert speech.over.wait(5)
    assert (speech.heard, speaker.status.detail) == (False, "this machine has no sound output")
    sound_server.start()
    assert speaker.say("Back again.").over.wait(10)
    assert speaker.snapshot()["state"] == "open"


def test_a_microphone_is_not_fooled_by_our_own_voice(sound_server: SoundServer, voice: Espeak):
    """The loudspeaker sounds in the room where the microphone is. Half-duplex: deaf while we speak, and not after."""
    sound_server.control("load-module", "module-loopback", "source=out.monitor", "sink=room", "latency_msec=30")
    gate, heard = Gate(), Heard()
    speaker = Speaker(voice, gate=gate)
    with Ear("kitchen", EarOptions(), heard.put, gate=gate) as ear:
        until(lambda: ear.status.state == "open")
        ear.answering(True)
        assert speaker.say("It is on now.").over.wait(10)
        time.sleep(0.4)
        ear.answering(False)
        assert heard.empty()
        heard.sentence(sound_server)


@pytest.mark.slow
def test_speech_during_an_answer_is_heard_where_our_own_voice_is_taken_out(sound_server: SoundServer, voice: Espeak):
    """No gate, and no echo on this rig: speech while we speak is a barge-in that ends the speech."""
    heard, speaker = Heard(), Speaker(voice)
    with Ear("kitchen", EarOptions(mode="push-to-talk"), heard.put) as ear:
        until(lambda: ear.status.state == "open")
        ear.answering(True)
        answer = speaker.say(f"{LONG} {LONG}")
        until(lambda: answer.heard)
        sound_server.play(np.concatenate([speech("Stop, please."), silence(1)]))
        utterance = heard.get(timeout=10)
        speaker.cancel()
        assert utterance.trigger == "barge-in"
        assert answer.over.wait(1)
        utterance.sound()
        assert utterance.ended == "pause"


@pytest.mark.slow
def test_echo_cancellation_tells_our_voice_from_a_person_s(sound_server: SoundServer, voice: Espeak):
    """A room in which the microphone hears the loudspeaker at a tenth of its strength, and PulseAudio's canceller."""
    server = sound_server
    server.control("load-module", "module-loopback", "source=out.monitor", "sink=room", "latency_msec=30")
    (echo,) = [
        line.split()[0] for line in server.control("list", "short", "sink-inputs").splitlines() if "loopback" in line
    ]  # fmt: skip
    server.control("set-sink-input-volume", echo, "46%")
    server.control(
        "load-module", "module-echo-cancel", "aec_method=webrtc", "source_master=mic", "sink_master=out",
        "source_name=clean", "sink_name=heard",
    )  # fmt: skip
    server.control("set-default-source", "clean")
    server.control("set-default-sink", "heard")
    assert echo_cancellation().active
    heard, speaker = Heard(), Speaker(voice)
    with Ear("kitchen", EarOptions(), heard.put) as ear:
        until(lambda: ear.status.state == "open")
        ear.answering(True)
        assert speaker.say(LONG).over.wait(20)
        time.sleep(0.5)
        assert heard.empty(), "it does not interrupt itself"
        answer = speaker.say(f"{LONG} {LONG}")
        until(lambda: answer.heard)
        time.sleep(2.0)
        server.play(np.concatenate([speech("Stop, please, be quiet.", "flite:rms"), silence(1)]))
        assert heard.get(timeout=5).trigger == "barge-in"
        speaker.cancel()
        assert answer.over.wait(1)


class TestEchoCancellation:
    def test_it_is_found_where_both_ends_are_its_own(self, sound_server: SoundServer):
        found = echo_cancellation()
        assert (found.server, found.active) == ("PulseAudio 16.1", False) or found.server.startswith("PulseAudio")
        assert found.line.startswith("half-duplex: no echo canceller is loaded; load module-echo-cancel")
        sound_server.control(
            "load-module", "module-echo-cancel", "aec_method=webrtc", "source_master=mic", "sink_master=out",
            "source_name=clean", "sink_name=heard",
        )  # fmt: skip
        sound_server.control("set-default-source", "clean")
        assert "the default sink is not the echo canceller's" in echo_cancellation().line
        sound_server.control("set-default-sink", "heard")
        found = echo_cancellation()
        assert found.active
        assert found.line.startswith("echo cancellation by PulseAudio")

    def test_no_sound_server(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        needs("pactl")
        monkeypatch.setenv("PULSE_SERVER", f"unix:{tmp_path}/nothing")
        found = echo_cancellation()
        assert (found.server, found.active) == (None, False)
        assert found.line == "half-duplex: no sound server (PulseAudio, PipeWire) answers"

    def test_nobody_to_ask(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "no pactl" in echo_cancellation().line


class TestVoices:
    def test_none_is_installed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(EdgeRuntimeError, match="no voice: apt-get install espeak-ng"):
            find_voice()

    def test_one_that_does_not_exist(self, sound_server: SoundServer):
        needs("espeak-ng")
        speaker = Speaker(find_voice("xx-none"))
        assert speaker.say("Hello.").over.wait(10)
        assert speaker.status.state == "lost"
        assert "voice does not exist" in speaker.status.detail

    def test_piper_speaks_sentence_by_sentence_in_one_run(self, sound_server: SoundServer, tmp_path: Path):
        pytest.importorskip("piper", reason="piper-tts is not installed")
        recorder = sound_server.listen()
        spoken = Speaker(find_voice(str(whistle(tmp_path)))).begin()
        spoken.push("The light is on. ")
        until(recorder.loud)
        spoken.push("The door is open.")
        spoken.finish()
        assert spoken.over.wait(20)
        recorder.close()
        assert not spoken.cancelled
        loud = recorder.loud()
        assert loud[-1] - loud[0] > 0.3

    def test_piper_without_a_voice(self, tmp_path: Path):
        pytest.importorskip("piper", reason="piper-tts is not installed")
        with pytest.raises(EdgeRuntimeError, match="not a voice of piper"):
            find_voice(str(tmp_path / "none.onnx"))


def whistle(folder: Path) -> Path:
    """A voice of piper that whistles 256 samples for each phoneme: none can be had here."""
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("Shape", ["input"], ["shape"], start=1, end=2),
        helper.make_node("Mul", ["shape", "hop"], ["count_1"]),
        helper.make_node("Squeeze", ["count_1"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["steps"]),
        helper.make_node("Cast", ["steps"], ["times"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["times", "pitch"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["wave"]),
        helper.make_node("Reshape", ["wave", "form"], ["output"]),
    ]
    constants = [
        helper.make_tensor("hop", TensorProto.INT64, [1], [256]),
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("one", TensorProto.INT64, [], [1]),
        helper.make_tensor("pitch", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("form", TensorProto.INT64, [4], [1, 1, 1, -1]),
    ]
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, [1, None]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
    ]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, None])]
    graph = helper.make_graph(nodes, "whistle", inputs, outputs, constants)
    model = folder / "whistle.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    letters = {letter: [number] for number, letter in enumerate("_^$ abcdefghijklmnopqrstuvwxyz.əɪæʌɔðŋʃθˈː")}
    config = {
        "audio": {"sample_rate": 22_050},
        "espeak": {"voice": "en-us"},
        "inference": {},
        "phoneme_type": "espeak",
        "num_symbols": len(letters),
        "num_speakers": 1,
        "phoneme_id_map": letters,
    }
    (folder / "whistle.onnx.json").write_text(json.dumps(config))
    return model
