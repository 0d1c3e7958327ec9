"""What is speech, where it is cut, what is asked: on spoken sentences, pauses, and ten minutes of nothing."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.engine import speech
from edge_runtime.engine.model import Model
from tests.engine.fake import FakeEngine
from tests.perception.sounds import noise, silence
from tests.perception.sounds import speech as spoken

if TYPE_CHECKING:
    from edge_runtime.engine.protocol import Transcript

RATE = 16_000
SENTENCE = "Turn on the light in the kitchen."


def music(seconds: float) -> np.ndarray:
    """Chords of plucked notes with a drum: seconds of it, at -20 dB."""
    random = np.random.default_rng(0)
    sound = np.zeros(int(seconds * RATE), np.float32)
    beat = RATE // 2
    at = np.arange(beat) / RATE
    for number, start in enumerate(range(0, len(sound) - beat + 1, beat)):
        for note in random.choice([220, 247, 262, 294, 330, 349, 392, 440], 3, replace=False):
            for overtone in (1, 2, 3):
                wave = np.exp(-3 * at) * (1 - np.exp(-200 * at)) * np.sin(2 * np.pi * note * overtone * at)
                sound[start : start + beat] += (wave / overtone / 6).astype(np.float32)
        if number % 2 == 0:
            hit = random.normal(0, 0.3, 1600) * np.exp(-np.arange(1600) / 300)
            sound[start : start + 1600] += hit.astype(np.float32)
    return (0.3 * sound).astype(np.float32)


def hum(seconds: float) -> np.ndarray:
    at = np.arange(int(seconds * RATE)) / RATE
    waves = [level * np.sin(2 * np.pi * pitch * at) for pitch, level in [(50, 0.1), (100, 0.05), (150, 0.02)]]
    return np.asarray(np.sum(waves, axis=0), np.float32)


NOTHING = {
    "silence": silence,
    "hum": hum,
    "music": music,
    "white noise": lambda seconds: noise("white", int(seconds * RATE), 0.05),
    "a fan": lambda seconds: noise("fan", int(seconds * RATE), 0.05),
    "knocks": lambda seconds: noise("clicks", int(seconds * RATE), 0.05),
}


def transcribed(sound: np.ndarray, *answers: str, **options) -> tuple[Transcript, FakeEngine]:
    engine = FakeEngine(*(answers or ("Thank you for watching.",)))
    return Model(engine).transcribe(sound, **options), engine


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_written_down_where_nobody_speaks(name):
    transcript, engine = transcribed(NOTHING[name](30))
    assert (transcript.text, transcript.segments, engine.requests) == ("", [], [])


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_written_down_in_ten_minutes_of_it(name):
    transcript, engine = transcribed(NOTHING[name](600))
    assert (transcript.text, transcript.segments, engine.requests) == ("", [], [])


def test_sentences_are_found_in_noise_and_timed():
    sentence = spoken(SENTENCE)
    sound = noise("fan", 20 * RATE, 0.003)
    for second in (2, 9, 15):
        sound[second * RATE : second * RATE + len(sentence)] += sentence
    transcript, engine = transcribed(sound, "One.", "Two.", "Three.")
    assert transcript.text == "One. Two. Three."
    for second, segment in zip((2, 9, 15), transcript.segments, strict=True):
        assert second - 0.5 <= segment["start"] <= second + 0.2
        assert abs(segment["end"] - second - len(sentence) / RATE) < 0.7
    heard = [len(request.messages[0]["content"][0]["audio"]) for request in engine.requests]
    assert all(abs(count - len(sentence)) < RATE for count in heard)


def test_short_pauses_do_not_part_sentences():
    sentence = spoken(SENTENCE)
    sound = np.concatenate([sentence, silence(0.6), sentence, silence(2), sentence])
    assert len(speech.parts(sound, 30)) == 2


def test_pieces_are_as_long_as_the_model_takes_and_leave_nothing_out():
    sentence = spoken(SENTENCE)
    sound = np.concatenate([part for _ in range(20) for part in (sentence, silence(0.35))])
    parts = speech.parts(sound, 10)
    assert len(parts) > 4
    assert all(part.end - part.start <= 10 * RATE for part in parts)
    assert all(second.start <= first.end + 0.6 * RATE for first, second in itertools.pairwise(parts))
    assert not any(part.overlaps for part in parts)


def test_speech_without_a_pause_is_cut_with_an_overlap():
    sentence = spoken(SENTENCE)
    breathless = np.tile(sentence, 24)
    breathless = breathless + noise("white", len(breathless), 0.006)
    parts = speech.parts(breathless, 10)
    assert len(parts) > 2
    assert [part.overlaps for part in parts] == [False] + [True] * (len(parts) - 1)
    for first, second in itertools.pairwise(parts):
        assert 0 < first.end - second.start <= 1.1 * RATE
        assert first.end - first.start <= 10 * RATE


def test_what_two_pieces_heard_is_written_once():
    assert speech.without_seam("We went to the old house.", "old house, and then home") == "and then home"
    assert speech.without_seam("We went to the old", "The old house") == "house"
    assert speech.without_seam("We went home.", "Then we slept.") == "Then we slept."
    assert speech.without_seam("", "Home") == "Home"
    assert speech.without_seam("- -", "- home") == "- home"


def test_overlapping_pieces_are_joined():
    breathless = np.tile(spoken(SENTENCE), 24)
    breathless = breathless + noise("white", len(breathless), 0.006)
    engine = FakeEngine("in the old", "the old house of", "house of ours", max_audio_seconds=10)
    transcript = Model(engine).transcribe(breathless)
    assert transcript.text.startswith("in the old house of ours")


def test_answers_are_no_longer_than_speech_can_be():
    _, engine = transcribed(spoken(SENTENCE))
    assert (engine.requests[0].max_tokens or 1000) < 80


def test_prompts_are_the_model_cards():
    assert speech.transcribe_prompt("English").startswith(
        "Transcribe the following speech segment in English into English"
    )
    assert speech.transcribe_prompt("German").startswith(
        "Transcribe the following speech segment in German into German"
    )
    assert "'German: '" in speech.transcribe_prompt("English", "German")
    assert speech.transcribe_prompt("English", None, "a museum").endswith("not part of it: a museum")


def test_translations_are_parted():
    assert speech.split_translation("Good day.\nGerman: Guten Tag.", "German") == ("Good day.", "Guten Tag.")
    assert speech.split_translation("Good day.", "German") == ("Good day.", "")
