"""Sound on the GPU: rooms, noise and gain for training, and log-mel features equal to Gemma4AudioFeatureExtractor's."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

RATE, FRAME, HOP, FFT, MELS = 16000, 320, 160, 512, 128
FLOOR = 1e-3


def frame_count(samples: torch.Tensor) -> torch.Tensor:
    """Valid 10 ms frames of clips of `samples` samples."""
    return torch.clamp((samples - FRAME // 2 - 1) // HOP + 1, min=0)


def soft_token_count(frames: torch.Tensor) -> torch.Tensor:
    """Soft tokens of clips of `frames` frames: two stride-2 convolutions."""
    return (frames + 3) // 4


@functools.cache
def _mel_filters(device: torch.device) -> torch.Tensor:
    """Triangular HTK mel filters [257, 128], 0..8000 Hz, not normalised."""

    def to_mel(hz: torch.Tensor) -> torch.Tensor:
        return 2595.0 * torch.log10(1.0 + hz / 700.0)

    top = to_mel(torch.tensor(RATE / 2, dtype=torch.float64))
    edges = 700.0 * (10.0 ** (torch.linspace(0, float(top), MELS + 2, dtype=torch.float64) / 2595.0) - 1.0)
    bins = torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    slopes = edges[None] - bins[:, None]
    widths = edges.diff()
    down, up = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    return torch.clamp(torch.minimum(down, up), min=0).float().to(device)


def _uniform(shape: tuple[int, ...], low: float, high: float, device: torch.device) -> torch.Tensor:
    return torch.empty(shape, device=device).uniform_(low, high)


def _chance(batch: int, probability: float, device: torch.device) -> torch.Tensor:
    return torch.rand(batch, 1, device=device) < probability


def _warp_vocal_tract(spectrum: torch.Tensor) -> torch.Tensor:
    """Stretches the frequency axis of [B, T, 257] by a factor of its own for each row."""
    batch = spectrum.shape[0]
    factor = _uniform((batch, 1), 0.88, 1.14, spectrum.device)
    factor = torch.where(_chance(batch, 0.3, spectrum.device), torch.ones_like(factor), factor)
    at = (torch.arange(FFT // 2 + 1, device=spectrum.device)[None] * factor).clamp(max=FFT / 2 - 0.01)
    low = at.long()
    part = (at - low)[:, None]
    index = low[:, None].expand(-1, spectrum.shape[1], -1)
    return spectrum.gather(2, index) * (1 - part) + spectrum.gather(2, index + 1) * part


def _mask_stripes(mel: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """SpecAugment: two stripes of time and two of frequency, most of the time."""
    batch, length, _ = mel.shape
    device = mel.device
    time = torch.arange(length, device=device)[None]
    band = torch.arange(MELS, device=device)[None]
    quiet = math.log(FLOOR)
    for _ in range(2):
        width = torch.randint(0, 9, (batch, 1), device=device)
        start = (torch.rand(batch, 1, device=device) * frames[:, None]).long()
        hit = (time >= start) & (time < start + width) & _chance(batch, 0.6, device)
        mel = mel.masked_fill(hit[..., None], quiet)
        width = torch.randint(0, 16, (batch, 1), device=device)
        start = torch.randint(0, MELS, (batch, 1), device=device)
        hit = (band >= start) & (band < start + width) & _chance(batch, 0.6, device)
        mel = mel.masked_fill(hit[:, None], quiet)
    return mel


def log_mel(waves: torch.Tensor, samples: torch.Tensor, *, augment: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel features.

    Args:
        waves: float [B, N] in -1..1, silence behind each clip's end; N a multiple of HOP.
        samples: int [B], each clip's length.
        augment: Warp vocal tracts, tilt the spectrum, mask stripes.

    Returns:
        [B, N / HOP, 128] (zero where invalid) and its bool mask.
    """
    batch, device = waves.shape[0], waves.device
    window = torch.hann_window(FRAME, periodic=True, device=device)
    frames = F.pad(waves, (FRAME // 2, 1)).unfold(1, FRAME + 1, HOP)[..., :-1]
    spectrum = torch.fft.rfft(frames * window, n=FFT).abs()
    if augment:
        spectrum = _warp_vocal_tract(spectrum)
    mel = spectrum @ _mel_filters(device)
    if augment:
        tilt = torch.randn(batch, 1, 6, device=device) * 0.35
        mel = mel * F.interpolate(tilt, size=MELS, mode="linear", align_corners=True).exp()
    mel = (mel + FLOOR).log()
    count = frame_count(samples)
    if augment:
        mel = _mask_stripes(mel, count)
    length = waves.shape[1] // HOP
    mel = F.pad(mel, (0, 0, 0, max(0, length - mel.shape[1])))[:, :length]
    mask = torch.arange(length, device=device)[None] < count[:, None]
    return mel * mask[..., None], mask


def _coloured_noise(batch: int, length: int, device: torch.device) -> torch.Tensor:
    noise = torch.fft.rfft(torch.randn(batch, length, device=device))
    hertz = torch.arange(noise.shape[1], device=device)[None] / noise.shape[1] * RATE / 2 + 60
    tilt = (hertz / 1000) ** (-torch.rand(batch, 1, device=device) * 1.2)
    return torch.fft.irfft(noise * tilt, n=length)


def _reverb(x: torch.Tensor) -> torch.Tensor:
    """A room: an exponentially decaying noise tail."""
    batch, length = x.shape
    device = x.device
    tail = 6000
    decay = RATE * _uniform((batch, 1), 0.01, 0.07, device)
    room = torch.randn(batch, tail, device=device) * torch.exp(-torch.arange(tail, device=device)[None] / decay)
    room[:, :40] = 0
    room = room / room.pow(2).sum(1, keepdim=True).sqrt() * _uniform((batch, 1), 0.1, 0.7, device)
    room[:, 0] = 1
    size = -(-(length + tail) // 16384) * 16384
    return torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(room, n=size), n=size)[:, :length]


def speak(
    pool: torch.Tensor,
    offset: torch.Tensor,
    length: torch.Tensor,
    speed: torch.Tensor,
    lead: torch.Tensor,
    trail: torch.Tensor,
    samples: int,
    *,
    augment: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts clips from `pool` and puts them into rooms.

    Args:
        pool: int16 samples of all utterances.
        offset: int64 [B], where each utterance starts.
        length: int64 [B], its samples.
        speed: float [B], playback speed.
        lead: int64 [B], silence before, in samples.
        trail: int64 [B], silence after.
        samples: Length of the rows.
        augment: Add room, noise, babble and gain.

    Returns:
        float [B, samples] and each clip's length int64 [B].
    """
    batch, device = offset.shape[0], offset.device
    spoken = (length / speed).long()
    total = (lead + spoken + trail).clamp(max=samples)
    time = torch.arange(samples, device=device)[None] - lead[:, None]
    voiced = (time >= 0) & (time < spoken[:, None])
    at = (time * speed[:, None]).clamp(min=0).minimum((length - 2).clamp(min=0)[:, None].float())
    low = at.long()
    part = at - low
    index = low + offset[:, None]
    x = (pool[index].float() * (1 - part) + pool[index + 1].float() * part) * voiced / 32768
    inside = torch.arange(samples, device=device)[None] < total[:, None]
    if not augment:
        return x, total

    def level(y: torch.Tensor) -> torch.Tensor:
        return (y.pow(2).sum(1, keepdim=True) / total[:, None]).sqrt() + 1e-6

    loudness = torch.where(level(x) < 1e-4, torch.full((batch, 1), 0.05, device=device), level(x))
    x = torch.where(_chance(batch, 0.35, device), _reverb(x), x)
    noise = _coloured_noise(batch, samples, device)
    snr = _uniform((batch, 1), 3, 35, device)
    x = x + _chance(batch, 0.6, device) * noise / level(noise) * loudness * 10 ** (-snr / 20)
    babble = x.roll(1, 0).roll(3000, 1)
    snr = _uniform((batch, 1), 6, 22, device)
    x = x + _chance(batch, 0.12, device) * babble / level(babble) * loudness * 10 ** (-snr / 20)
    x = x * 10 ** (_uniform((batch, 1), -24, 2, device) / 20)
    return x.clamp(-1, 1) * inside, total
