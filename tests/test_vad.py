"""The real detector and the real end-pointer on spoken sentences, pauses and noise."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.perception.endpointing import EndpointOptions
from edge_runtime.perception.listener import Listener
from edge_runtime.vad import MODEL, VoiceActivity
from tests.perception.sounds import LOUDNESS, RATE, noise, silence, speech

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.perception.utterance import Utterance

VOICES = ["en-us", "en-gb", "en-us+f3", "flite:slt", "flite:rms"]
SENTENCE = "Turn on the light in the kitchen."


@pytest.fixture(scope="module")
def detector() -> VoiceActivity:
    return VoiceActivity()


def listen(
    detector: VoiceActivity, sound: NDArray[np.float32], options: EndpointOptions | None = None
) -> list[tuple[float, float, Utterance]]:
    """(seconds at its beginning, at its end, utterance) of each utterance."""
    detector.reset()
    listener = Listener("kitchen", detector, options=options)
    begun: list[tuple[float, Utterance]] = []
    ended: dict[int, float] = {}
    for start in range(0, len(sound) - 511, 512):
        now = (start + 512) / RATE
        if (utterance := listener.feed(sound[start : start + 512])) is not None:
            begun.append((now, utterance))
        for number, (_, each) in enumerate(begun):
            if each.over.is_set():
                ended.setdefault(number, now)
    return [(at, ended.get(number, np.inf), utterance) for number, (at, utterance) in enumerate(begun)]


def said(detector: VoiceActivity, sound: NDArray[np.float32], pause_s: float = 0.7) -> list[Utterance]:
    found = listen(detector, sound, EndpointOptions(pause_s=pause_s))
    return [utterance for _, _, utterance in found if utterance.ended]


def test_the_model_is_the_one_whose_licence_lies_beside_it():
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest().startswith("7ed98ddbad84")
    assert "MIT License" in MODEL.with_suffix(".LICENSE").read_text()


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize("kind", ["silence", "white", "fan", "clicks"])
def test_it_hears_speech_within_200_ms_and_waits_less_than_a_second_after_it(
    detector: VoiceActivity, voice: str, kind: str
):
    sentence = speech(SENTENCE, voice)
    sound = np.concatenate([silence(1.5), sentence, silence(2.0)])
    if kind != "silence":
        sound += noise(kind, len(sound), LOUDNESS * 10 ** (-15 / 20))
    ((begin, end, utterance),) = listen(detector, sound)
    assert utterance.ended == "pause"
    assert 1.5 <= begin < 1.5 + 0.2
    spoken_until = 1.5 + len(sentence) / RATE
    assert spoken_until < end < spoken_until + 1.0
    assert utterance.seconds >= len(sentence) / RATE, "all of it is there"


@pytest.mark.parametrize("voice", VOICES)
def test_pauses_that_people_make_do_not_cut_a_sentence(detector: VoiceActivity, voice: str):
    first, second = speech("Turn on the light", voice), speech("and close the door to the garden.", voice)
    for pause_s in (0.2, 0.4, 0.6):
        sound = np.concatenate([silence(1), first, silence(pause_s), second, silence(1.5)])
        sound += noise("fan", len(sound), LOUDNESS / 10)
        (utterance,) = said(detector, sound)
        assert utterance.seconds >= (len(first) + len(second)) / RATE + pause_s


@pytest.mark.parametrize(("pause_s", "expected"), [(0.4, 2), (0.7, 1), (1.2, 1)])
def test_how_long_a_pause_may_be_is_tunable(detector: VoiceActivity, pause_s: float, expected: int):
    first, second = speech("Turn on the light"), speech("and close the door to the garden.")
    sound = np.concatenate([silence(1), first, silence(0.6), second, silence(2)])
    assert len(said(detector, sound, pause_s)) == expected


def test_pauses_as_a_voice_reads_them(detector: VoiceActivity):
    """Commas and a full stop within one request, at the speed of a slow speaker."""
    sentence = speech("Please turn off the radio, the lamp, and the heater. Thank you.", words_per_minute=120)
    (utterance,) = said(detector, np.concatenate([silence(1), sentence, silence(1.5)]))
    assert utterance.seconds >= len(sentence) / RATE


@pytest.mark.parametrize("kind", ["white", "fan", "clicks"])
def test_noise_is_nobody(detector: VoiceActivity, kind: str):
    assert listen(detector, noise(kind, 20 * RATE, LOUDNESS)) == []


def test_a_quiet_speaker_is_heard(detector: VoiceActivity):
    sound = np.concatenate([silence(1), speech(SENTENCE) / 16, silence(1.5)])  # -50 dB of full scale
    assert len(said(detector, sound)) == 1
