from __future__ import annotations

import numpy as np
import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.ear import EarOptions
from edge_runtime.perception.listener import Listener
from edge_runtime.vad import VoiceActivity
from tests.perception.sounds import RATE, noise, silence, speech

pytest.importorskip("pymicro_wakeword", reason="the extra wake is not installed")

from edge_runtime.perception.wake import WakeWords, wake_words

PHRASES = {"hey_jarvis": "hey jarvis", "okay_nabu": "okay naboo", "alexa": "alexa"}


def heard(words: WakeWords, sound: np.ndarray) -> list[str]:
    words.reset()
    sound = sound + noise("white", len(sound), 1e-3)
    found = (words(sound[start : start + 512]) for start in range(0, len(sound) - 511, 512))
    return [word for word in found if word is not None]


def test_it_hears_its_own_word_once_and_no_other():
    voices = ["flite:slt", "flite:rms"]
    hits = 0
    for name, phrase in PHRASES.items():
        words = WakeWords([name])
        for voice in voices:
            found = heard(words, np.concatenate([silence(1), speech(phrase, voice, 140), silence(1)]))
            assert len(found) <= 1
            hits += len(found)
        for other in PHRASES.values():
            if other != phrase:
                assert heard(words, np.concatenate([silence(1), speech(other, voices[0]), silence(1)])) == []
    assert hits >= 5, "of six"


def test_ordinary_speech_is_no_wake_word():
    words = WakeWords(wake_words())
    sound = [silence(1)]
    for text in ("What is the temperature outside?", "Please close the door.", "Who is at the front door today?"):
        sound += [speech(text), silence(0.7), speech(text, "flite:slt"), silence(0.7)]
    assert heard(words, np.concatenate(sound)) == []


def test_what_is_said_after_it_is_an_utterance():
    command = speech("turn on the light in the kitchen", "flite:slt")
    for gap_s in (0.1, 1.5):
        listener = Listener("kitchen", VoiceActivity(), mode="wake-word", wake=WakeWords(["hey_jarvis"]))
        word = speech("hey jarvis", "flite:slt")
        sound = np.concatenate([silence(1), word, silence(gap_s), command, silence(2)])
        begun = [u for at in range(0, len(sound) - 511, 512) if (u := listener.feed(sound[at : at + 512]))]
        (utterance,) = begun
        assert (utterance.wake_word, utterance.ended) == ("Hey Jarvis", "pause")
        spoken = utterance.sound()
        best = np.correlate(spoken, command, "valid").max() / (command**2).sum()
        assert best == pytest.approx(1.0, abs=0.05), "the whole command is in it"
        assert len(spoken) < len(command) + 2.2 * RATE


def test_a_threshold_of_ones_own():
    sound = np.concatenate([silence(1), speech("hey jarvis", "flite:slt"), silence(1)])
    assert heard(WakeWords(["hey_jarvis"], threshold=0.99999), sound) == []


def test_a_word_that_is_not_there():
    with pytest.raises(EdgeRuntimeError, match="wake word hey_you: no such model or file; there are alexa, hey_jarvis"):
        WakeWords(["hey_you"])


def test_a_file_that_is_none(tmp_path):
    broken = tmp_path / "word.json"
    broken.write_text('{"micro": {}}')
    with pytest.raises(EdgeRuntimeError, match="cannot be loaded"):
        WakeWords([str(broken)])


def test_the_mode_needs_a_word():
    from edge_runtime.perception.ear import Ear

    with pytest.raises(EdgeRuntimeError, match="needs wake_words"):
        Ear("kitchen", EarOptions(mode="wake-word"), print)
