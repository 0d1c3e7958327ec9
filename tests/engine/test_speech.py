from __future__ import annotations

import itertools

import numpy as np

from edge_runtime.engine import speech

RATE = 16_000


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(1).normal(0, level, int(seconds * RATE)).astype(np.float32)


def test_short_recordings_stay_whole():
    assert speech.cut(noise(30), RATE, 30) == [(0, 30 * RATE)]


def test_long_ones_are_cut_in_the_pause():
    samples = noise(70)
    for second in (25.0, 47.0):
        samples[int(second * RATE) : int((second + 0.4) * RATE)] *= 0.01
    pieces = speech.cut(samples, RATE, 30)
    assert next(start for start, _ in pieces) == 0
    assert pieces[-1][1] == len(samples)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(pieces))
    assert all(0 < end - start <= 30 * RATE for start, end in pieces)
    assert 25.0 <= pieces[0][1] / RATE <= 25.4
    assert 47.0 <= pieces[1][1] / RATE <= 47.4


def test_silence_is_cut_near_28_s():
    pieces = speech.cut(np.zeros(60 * RATE, np.float32), RATE, 30)
    assert abs(pieces[0][1] / RATE - 28) < 0.1


def test_silence():
    assert speech.is_silent(np.zeros(RATE, np.float32), RATE)
    assert speech.is_silent(noise(1, 0.001), RATE)
    assert not speech.is_silent(noise(1, 0.02), RATE)
    word = np.concatenate([np.zeros(RATE, np.float32), noise(0.1), np.zeros(RATE, np.float32)])
    assert not speech.is_silent(word, RATE)


def test_prompts_are_the_model_cards():
    assert speech.transcribe_prompt("English").startswith(
        "Transcribe the following speech segment in English into English"
    )
    assert "'German: '" in speech.transcribe_prompt("English", "German")


def test_translations_are_parted():
    assert speech.split_translation("Good day.\nGerman: Guten Tag.", "German") == ("Good day.", "Guten Tag.")
    assert speech.split_translation("Good day.", "German") == ("Good day.", "")
