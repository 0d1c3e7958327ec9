"""Microphones and ears on a real sound server, which is killed, frozen and started again."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception import microphone as module
from edge_runtime.perception.ear import Ear, EarOptions
from edge_runtime.perception.microphone import BLOCK, Microphone, Reblock, sound_devices
from tests.perception.sounds import RATE, silence, speech

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.perception.sounds import SoundServer

SENTENCE = "Turn on the light, please."


def until(true: Callable[[], Any], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Heard(queue.Queue[Any]):
    """Utterances in the order in which they began."""

    def sentence(self, server: SoundServer) -> None:
        """Says the sentence, which must be heard."""
        server.play(np.concatenate([silence(0.3), speech(SENTENCE), silence(1.0)]))
        self.expect(speech(SENTENCE))

    def expect(self, spoken: np.ndarray) -> None:
        utterance = self.get(timeout=10)
        sound = utterance.sound()
        assert utterance.ended == "pause"
        assert np.corrcoef(*aligned(sound, spoken))[0, 1] > 0.95


def aligned(sound: np.ndarray, spoken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = 2 ** int(np.ceil(np.log2(len(sound) + len(spoken))))
    match = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(spoken, size)))
    start = int(match[: len(sound)].argmax())
    count = min(len(spoken), len(sound) - start)
    return sound[start : start + count], spoken[:count]


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_any_rate_becomes_blocks_of_16_khz(rate: int):
    seconds = 2.0
    sound = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate).astype(np.float32)
    reblock = Reblock(rate)
    step = round(rate * 0.032)
    blocks = [block for start in range(0, len(sound), step) for block in reblock(sound[start : start + step])]
    assert {block.shape for block in blocks} == {(BLOCK,)}
    assert len(blocks) * BLOCK == pytest.approx(seconds * RATE, abs=3 * BLOCK)
    spectrum = np.abs(np.fft.rfft(np.concatenate(blocks[4:]) * np.hanning(len(blocks[4:]) * BLOCK)))
    assert spectrum.argmax() * RATE / (len(blocks[4:]) * BLOCK) == pytest.approx(440, abs=1)


def test_two_microphones_by_name_and_both_hear_only_their_own(sound_server: SoundServer):
    names = [device["name"] for device in sound_devices() if device["inputs"]]
    assert "yard_camera" in names
    kitchen, yard = Heard(), Heard()
    with Ear("kitchen", EarOptions("default"), kitchen.put) as one, Ear("yard", EarOptions("YARD"), yard.put) as two:
        until(lambda: one.status.state == two.status.state == "open")
        other = speech("Who is at the gate?")
        sound_server.play(np.concatenate([silence(0.3), other, silence(1.0)]), "yard")
        kitchen.sentence(sound_server)
        yard.expect(other)
        assert kitchen.empty()
        assert yard.empty()
        assert one.snapshot() | {"seconds": 0} == {
            "state": "open", "detail": "", "seconds": 0, "losses": 0, "dropped": 0
        }  # fmt: skip
    assert one.status.state == two.status.state == "closed"


def test_it_comes_back_when_the_sound_server_does(sound_server: SoundServer, caplog: pytest.LogCaptureFixture):
    states: list[str] = []
    with Ear("kitchen", EarOptions(), print, on_change=lambda status: states.append(status.state)) as ear:
        until(lambda: ear.status.state == "open")
        pushed = ear.push_to_talk()
        sound_server.kill()
        assert isinstance(pushed.sound(), np.ndarray)
        assert pushed.aborted.startswith("microphone kitchen: ")
        until(lambda: ear.status.detail == "this machine has no sound input")
        with pytest.raises(EdgeRuntimeError, match="microphone kitchen is not there: this machine has no sound input"):
            ear.push_to_talk()
        sound_server.start()
        back = time.monotonic()
        until(lambda: ear.status.state == "open")
        assert time.monotonic() - back < 10
        assert len(ear.push_to_talk(seconds=0.2).sound()) > 0.1 * RATE
        assert ear.snapshot()["losses"] == 1
    assert states == ["open", "lost", "open", "closed"]
    assert len(caplog.records) <= 3, "one line for each reason, however many attempts"


@pytest.mark.slow
def test_a_frozen_sound_server_is_noticed(sound_server: SoundServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "STALL_S", 1.0)
    heard = Heard()
    with Ear("kitchen", EarOptions(), heard.put) as ear:
        until(lambda: ear.status.state == "open")
        sound_server.freeze()
        until(lambda: ear.status.state == "lost")
        assert ear.status.detail == "silent for 1 s"
        sound_server.thaw()
        until(lambda: ear.status.state == "open")
        heard.sentence(sound_server)


def test_push_to_talk(sound_server: SoundServer):
    heard = Heard()
    with Ear("kitchen", EarOptions(mode="push-to-talk"), heard.put) as ear:
        until(lambda: ear.status.state == "open")
        spoken = speech(SENTENCE)
        likeness: list[float] = []
        while len(likeness) < 4 and max(likeness, default=0.0) < 0.95:  # a sound server on a busy machine drops some
            utterance = ear.push_to_talk()
            sound_server.play(spoken).wait(10)
            time.sleep(0.4)
            ear.release()
            likeness.append(np.corrcoef(*aligned(utterance.sound(), spoken))[0, 1])
            assert utterance.ended == "stopped"
        assert max(likeness) > 0.95
        recorded = ear.push_to_talk(seconds=0.5)
        assert len(recorded.sound()) == pytest.approx(0.5 * RATE, abs=BLOCK)
    assert heard.empty()


def test_an_ear_that_is_closed_ends_what_it_hears(sound_server: SoundServer):
    ear = Ear("kitchen", EarOptions(mode="push-to-talk"), print)
    until(lambda: ear.status.state == "open")
    utterance = ear.push_to_talk()
    begun = time.monotonic()
    ear.close()
    assert time.monotonic() - begun < 1.0
    utterance.sound()
    assert utterance.aborted == "microphone kitchen was closed"


def test_a_name_that_no_device_has(sound_server: SoundServer):
    microphone = Microphone("kitchen", "Jabra")
    blocks = microphone.blocks()
    assert next(blocks) is None
    assert microphone.status.detail.startswith("no sound input is called 'Jabra'; there are 'pulse'")
    microphone.close()
    assert list(blocks) == []


@pytest.mark.slow
def test_a_slow_listener_costs_samples_that_are_counted(sound_server: SoundServer):
    microphone = Microphone("kitchen")
    blocks = microphone.blocks()
    next(blocks)
    time.sleep(4.0)
    late = [next(blocks) is not None for _ in range(90)]
    assert all(late)
    assert microphone.dropped == 1
    microphone.close()


def test_the_program_ends_when_we_are_killed(sound_server: SoundServer):
    script = (
        "from edge_runtime.perception.microphone import Microphone\n"
        "microphone = Microphone('kitchen'); blocks = microphone.blocks(); next(blocks)\n"
        "print(microphone._child.process.pid, flush=True)\n"
        "for _ in blocks: pass\n"
    )
    ours = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    child = int(ours.stdout.readline())
    ours.kill()
    ours.communicate()
    until(lambda: not alive(child), 3)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Broken:
    def __call__(self, block: np.ndarray) -> float:
        raise RuntimeError("out of memory")

    def reset(self) -> None:
        pass


def test_a_detector_that_fails_leaves_nobody_waiting(sound_server: SoundServer, caplog: pytest.LogCaptureFixture):
    ear = Ear("kitchen", EarOptions(mode="push-to-talk"), print)
    until(lambda: ear.status.state == "open")
    utterance = ear.push_to_talk()
    ear._listener._detect = Broken()
    waiting = threading.Thread(target=utterance.sound)
    waiting.start()
    waiting.join(5)
    assert utterance.aborted == "microphone kitchen: internal error"
    assert "nobody listens any more" in caplog.text
    ear.close()
