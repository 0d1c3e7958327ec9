"""Log-mel features as Gemma 4's audio tower takes them.

The same arithmetic as transformers' `Gemma4AudioFeatureExtractor`: 20 ms frames every 10 ms, half a frame of padding on
the left, periodic Hann window, magnitude spectrum, HTK mel filters, `log(mel + floor)`. Knows nothing of files or
sample formats: it takes float32 samples at the model's rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAD_SAMPLES = 128
"""Clips are padded with zeros to a multiple of this many samples; the frames that touch the padding are masked."""

TOKEN_STRIDE = 4
"""Mel frames per soft token: two convolutions of stride 2."""


@dataclass(frozen=True)
class LogMel:
    """The front end of the audio tower, with the settings of a checkpoint.

    Attributes:
        sampling_rate: Samples per second that `features` expects.
        num_mels: Mel bands.
        frame_length: Samples per frame.
        hop_length: Samples from one frame to the next.
        fft_length: Points of the FFT, at least `frame_length`.
        min_frequency: Lower edge of the first mel band, Hz.
        max_frequency: Upper edge of the last mel band, Hz.
        mel_floor: Added before the logarithm.
        scale: Factor on the samples.
        mean: Subtracted from each band of the result.
        stddev: Divides each band of the result.
        max_tokens: Soft tokens at most: what longer clips are refused by.
    """

    sampling_rate: int = 16_000
    num_mels: int = 128
    frame_length: int = 320
    hop_length: int = 160
    fft_length: int = 512
    min_frequency: float = 0.0
    max_frequency: float = 8000.0
    mel_floor: float = 1e-3
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    stddev: tuple[float, ...] = ()
    max_tokens: int = 750

    @classmethod
    def from_config(cls, processor: dict[str, Any]) -> LogMel:
        """Reads `processor_config.json` (its `feature_extractor` part; what is absent has Gemma 4's value).

        Raises:
            EdgeRuntimeError: The checkpoint asks for pre-emphasis, which no Gemma 4 uses.
        """
        config = processor.get("feature_extractor") or {}
        if config.get("preemphasis"):
            raise EdgeRuntimeError("processor_config.json asks for pre-emphasis of audio, which is not supported")
        rate = int(config.get("sampling_rate", cls.sampling_rate))
        frame = int(config.get("frame_length") or round(rate * config.get("frame_length_ms", 20.0) / 1000))
        fft = 2 ** math.ceil(math.log2(frame)) * (2 if config.get("fft_overdrive") else 1)
        return cls(
            sampling_rate=rate,
            num_mels=int(config.get("feature_size", cls.num_mels)),
            frame_length=frame,
            hop_length=int(config.get("hop_length") or round(rate * config.get("hop_length_ms", 10.0) / 1000)),
            fft_length=int(config.get("fft_length") or fft),
            min_frequency=float(config.get("min_frequency", cls.min_frequency)),
            max_frequency=float(config.get("max_frequency", cls.max_frequency)),
            mel_floor=float(config.get("mel_floor", cls.mel_floor)),
            scale=float(config.get("input_scale_factor", cls.scale)),
            mean=tuple(config.get("per_bin_mean") or ()),
            stddev=tuple(config.get("per_bin_stddev") or ()),
            max_tokens=int(processor.get("audio_seq_length", cls.max_tokens)),
        )

    @property
    def max_samples(self) -> int:
        """The longest clip in samples: 30 s for Gemma 4."""
        return self.max_tokens * TOKEN_STRIDE * self.hop_length

    def valid_frames(self, samples: int) -> int:
        """Frames that lie wholly on real samples."""
        return max(0, (samples - self.frame_length // 2 - 1) // self.hop_length + 1)

    def soft_tokens(self, samples: int) -> int:
        """Soft tokens that the tower gives for a clip of that many samples."""
        return math.ceil(self.valid_frames(samples) / TOKEN_STRIDE)

    def features(self, samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Log-mel spectrogram of one clip.

        Args:
            samples: float32 `[n]`, mono, in -1..1, at `sampling_rate`.

        Returns:
            float32 `[frames, num_mels]`, zero where masked, and bool `[frames]`, True for valid frames.

        Raises:
            EdgeRuntimeError: The clip is shorter than a frame or longer than `max_samples`.
        """
        count = len(samples)
        if self.valid_frames(count) == 0:
            raise EdgeRuntimeError("the audio is empty or shorter than 20 ms")
        if count > self.max_samples:
            seconds, limit = count / self.sampling_rate, self.max_samples / self.sampling_rate
            raise EdgeRuntimeError(
                f"the audio lasts {seconds:.1f} s, the model takes {limit:.0f} s at most: "
                "cut it, or use transcribe, which takes any length",
                "too_large",
            )
        left = self.frame_length // 2
        log_mel = self.frames(np.pad(samples.astype(np.float32, copy=False), (left, -count % PAD_SAMPLES)))
        mask = np.arange(len(log_mel)) < self.valid_frames(count)
        return log_mel * mask[:, None], mask

    def frames(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-mel of every whole frame of some samples, without padding or mask.

        Args:
            samples: float32 `[n]`, at least `frame_length + 1`: one sample more than a frame is needed to start one, as
                where a checkpoint would use pre-emphasis.

        Returns:
            float32 `[(n - frame_length - 1) // hop_length + 1, num_mels]`.
        """
        windows = np.lib.stride_tricks.sliding_window_view(samples, self.frame_length + 1)[:: self.hop_length, :-1]
        if self.scale != 1.0:
            windows = windows * np.float32(self.scale)
        spectrum = np.abs(np.fft.rfft(windows * self._window, n=self.fft_length, axis=-1))
        log_mel = np.log(spectrum @ self._filters + self.mel_floor)
        if self.mean:
            log_mel -= np.asarray(self.mean)
        if self.stddev:
            log_mel /= np.asarray(self.stddev)
        return log_mel.astype(np.float32)

    @cached_property
    def _window(self) -> NDArray[np.float32]:
        n = np.arange(self.frame_length)
        return (0.5 - 0.5 * np.cos(2 * np.pi * n / self.frame_length)).astype(np.float32)

    @cached_property
    def _filters(self) -> NDArray[np.float64]:
        """Triangular filters, float64 `[fft_length / 2 + 1, num_mels]`, equally spaced on the HTK mel scale."""
        edges_mel = np.linspace(_mel(self.min_frequency), _mel(self.max_frequency), self.num_mels + 2)
        edges = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
        bins = np.linspace(0, self.sampling_rate // 2, self.fft_length // 2 + 1)
        slopes = edges[None, :] - bins[:, None]
        width = np.diff(edges)
        down, up = -slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]
        filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(down, up))
        return filters


class LogMelStream:
    """Frames of a sound that is still going on: together the valid ones that `LogMel.features` gives for the whole.

    A frame comes as soon as its last sample is there, so there is nothing left to flush at the end.
    """

    def __init__(self, log_mel: LogMel) -> None:
        self._log_mel = log_mel
        self._rest = np.zeros(log_mel.frame_length // 2, np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes any number of samples.

        Args:
            samples: float32 `[n]`, mono, in -1..1, at the model's rate.

        Returns:
            float32 `[frames, num_mels]`, the frames that are complete now and were not before.
        """
        mel = self._log_mel
        held = np.concatenate([self._rest, samples.astype(np.float32, copy=False)])
        count = max(0, (len(held) - mel.frame_length - 1) // mel.hop_length + 1)
        # A copy: a view would keep all that was pushed alive.
        self._rest = held[count * mel.hop_length :].copy()
        return mel.frames(held) if count else np.zeros((0, mel.num_mels), np.float32)


def _mel(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)
