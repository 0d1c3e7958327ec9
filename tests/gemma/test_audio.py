from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.audio import LogMel, LogMelStream

MEL = LogMel()
LENGTHS = [161, 162, 200, 320, 321, 480, 481, 639, 641, 1000, 15_999, 16_000, 16_001, 37_123, 479_999, 480_000]


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, 0.1, samples).clip(-1, 1).astype(np.float32)


@pytest.mark.oracle
@pytest.mark.parametrize("samples", LENGTHS)
def test_equals_transformers(samples):
    from transformers import Gemma4AudioFeatureExtractor

    clip = noise(samples)
    expected = Gemma4AudioFeatureExtractor()([clip], return_tensors="np")
    features, mask = MEL.features(clip)
    assert features.shape == expected["input_features"][0].shape
    assert np.array_equal(mask, expected["input_features_mask"][0])
    assert np.abs(features - expected["input_features"][0]).max() <= 1e-6
    assert MEL.soft_tokens(samples) == expected["input_features_mask"][0][::2][::2].sum()


@pytest.mark.oracle
def test_equals_transformers_with_unusual_settings():
    from transformers import Gemma4AudioFeatureExtractor

    mean, stddev = [0.5] * 64, [2.0] * 64
    settings: dict[str, Any] = {
        "feature_size": 64,
        "input_scale_factor": 2.0,
        "mel_floor": 1e-2,
        "min_frequency": 125.0,
        "max_frequency": 7600.0,
    }
    settings |= {"per_bin_mean": mean, "per_bin_stddev": stddev}
    expected = Gemma4AudioFeatureExtractor(**settings)([noise(5000)], return_tensors="np")["input_features"][0]
    features, _ = LogMel.from_config({"feature_extractor": settings}).features(noise(5000))
    assert np.abs(features - expected).max() <= 1e-5


@pytest.mark.parametrize("samples", LENGTHS)
def test_shape_and_mask(samples):
    features, mask = MEL.features(noise(samples))
    assert features.dtype == np.float32
    assert features.shape == (len(mask), 128)
    assert mask.sum() == MEL.valid_frames(samples)
    assert np.all(mask[:-1] >= mask[1:])  # valid frames come first
    assert not features[~mask].any()


@pytest.mark.parametrize("size", [1, 160, 161, 640, 10_000])
def test_a_stream_gives_the_valid_frames(size):
    for samples in (0, 160, *(count for count in LENGTHS if count < 20_000)):
        clip, stream = noise(samples), LogMelStream(MEL)
        step = max(size, samples // 1000)
        frames = np.concatenate([stream.push(clip[at : at + step]) for at in range(0, samples + 1, step)])
        assert len(frames) == MEL.valid_frames(samples)
        if samples > 160:
            features, mask = MEL.features(clip)
            assert np.abs(frames - features[mask]).max() < 1e-6


def test_a_tone_lights_its_band():
    t = np.arange(16_000) / 16_000
    features, mask = MEL.features((0.5 * np.sin(2 * np.pi * 1000 * t)).astype(np.float32))
    # 1000 Hz is 1000 mel on the HTK scale; 128 bands share 0 to 2840 mel.
    assert abs(int(features[mask][10].argmax()) - 1000 / 2840 * 129 + 1) < 1.5


def test_silence_is_the_floor():
    features, mask = MEL.features(np.zeros(16_000, np.float32))
    assert np.allclose(features[mask], np.log(1e-3))


def test_soft_tokens_are_40_ms_each():
    assert MEL.soft_tokens(16_000) == 25
    assert MEL.soft_tokens(480_000) == 750


def test_too_short_and_too_long():
    with pytest.raises(EdgeRuntimeError, match="empty or shorter than 20 ms"):
        MEL.features(np.zeros(160, np.float32))
    with pytest.raises(EdgeRuntimeError, match=r"lasts 31\.0 s, the model takes 30 s at most") as error:
        MEL.features(np.zeros(31 * 16_000, np.float32))
    assert error.value.code == "too_large"


def test_preemphasis_is_refused():
    with pytest.raises(EdgeRuntimeError, match="pre-emphasis"):
        LogMel.from_config({"feature_extractor": {"preemphasis": 0.97}})
