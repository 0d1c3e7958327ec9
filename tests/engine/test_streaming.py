"""Sounds that are still going on, on the built-in model: their soft tokens are those of the whole clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import edge_runtime
from edge_runtime import media
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx.encoders import Encoders
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.chat import Media

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.streaming import AudioStream

VOICE = Path(edge_runtime.__file__).parent / "demo_assets" / "voice.wav"
LIMIT = 1e-4
MS = 16
"""Samples per millisecond."""


@pytest.fixture(scope="module")
def encoders(fp32_bundle: Path) -> Iterator[Encoders]:
    encoders = Encoders(fp32_bundle, read_manifest(fp32_bundle), threads=1)
    yield encoders
    encoders.close()


@pytest.fixture(scope="module")
def voice() -> NDArray[np.float32]:
    return media.load_audio(VOICE)


def whole(encoders: Encoders, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    return encoders.encode(encoders.prepare(Media("audio", samples)))


def pieces(stream: AudioStream, samples: NDArray[np.float32], size: Callable[[], int]) -> list[NDArray[np.float32]]:
    found, at = [], 0
    while at < len(samples):
        count = size()
        found.append(stream.push(samples[at : at + count]))
        at += count
    return [*found, stream.finish()]


@pytest.mark.parametrize("milliseconds", [40, 100, 330, 1000, 2000, None])
def test_equals_the_whole_clip(encoders: Encoders, voice: Any, milliseconds: int | None):
    rng = np.random.default_rng(0)
    stream = encoders.listen(tokens=1)
    for end in (len(voice), len(voice) - 777):
        clip = voice[:end]
        found = pieces(stream, clip, lambda: milliseconds * MS if milliseconds else int(rng.integers(0, 700 * MS)))
        expected = whole(encoders, clip)
        assert np.concatenate(found).shape == expected.shape
        assert np.abs(np.concatenate(found) - expected).max() < LIMIT


def test_tokens_come_as_soon_as_they_are_final(encoders: Encoders, voice: Any):
    stream = encoders.listen(tokens=1)
    found = 0
    for end in range(40 * MS, 1000 * MS, 40 * MS):
        found += len(stream.push(voice[end - 40 * MS : end]))
        # A token's four frames reach 10 ms less a sample beyond it, because the first one lies half before the clip.
        assert found == (end - 1) // (40 * MS)


def test_half_a_minute_in_bounded_memory(encoders: Encoders, voice: Any):
    clip = np.resize(voice, encoders.log_mel.max_samples)
    stream = encoders.listen()
    state = set()
    found = []
    for at in range(0, len(clip), 500 * MS):
        found.append(stream.push(clip[at : at + 500 * MS]))
        state.add(stream.state_bytes)
    found.append(stream.finish())
    assert np.abs(np.concatenate(found) - whole(encoders, clip)).max() < LIMIT
    assert len(state) == 1
    assert max(state) < 200_000


@pytest.mark.parametrize("samples", [0, 160, 161, 330, 700])
def test_very_short_sounds(encoders: Encoders, voice: Any, samples: int):
    found = np.concatenate(pieces(encoders.listen(), voice[:samples], lambda: 100))
    assert len(found) == encoders.log_mel.soft_tokens(samples)
    if samples > 160:  # a whole clip cannot be shorter
        assert np.abs(found - whole(encoders, voice[:samples])).max() < LIMIT


def test_runs_wait_until_they_are_worth_it(encoders: Encoders, voice: Any):
    sizes = [len(tokens) for tokens in pieces(encoders.listen(tokens=10), voice, lambda: 40 * MS)]
    assert set(sizes[:-1]) == {0, 10}


def test_half_a_minute_is_the_limit(encoders: Encoders, voice: Any):
    stream = encoders.listen()
    found = [stream.push(voice)]
    assert stream.room == encoders.log_mel.max_samples - len(voice)
    with pytest.raises(EdgeRuntimeError, match=r"over 30 s: end it and begin another") as error:
        stream.push(np.zeros(stream.room + 1, np.float32))
    assert error.value.code == "too_large"
    found.append(stream.finish())
    assert np.abs(np.concatenate(found) - whole(encoders, voice)).max() < LIMIT
    assert stream.room == encoders.log_mel.max_samples
