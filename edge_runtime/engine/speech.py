"""Speech to text on top of a model that listens to half a minute: where to cut, what is silence, what to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CUT_AT = 28.0
"""Longer recordings are cut at the quietest moment near this many seconds."""
CUT_FROM, CUT_TO = 22.0, 29.5
FRAME_S = 0.03
SMOOTH_FRAMES = 7
SILENCE = 10 ** (-50 / 20)
"""Root mean square, -50 dB of full scale, that no frame of a silent piece exceeds."""


def cut(samples: NDArray[np.float32], rate: int, limit_s: float) -> list[tuple[int, int]]:
    """Pieces of at most `limit_s` seconds, cut where it is quietest.

    Args:
        samples: float32 `[n]`.
        rate: Samples per second.
        limit_s: Seconds that the model takes.

    Returns:
        (start, end) in samples, in order, together the whole.
    """
    scale = min(1.0, limit_s / 30.0)
    pieces = []
    start = 0
    while len(samples) - start > limit_s * rate:
        first, last = (start + int(scale * seconds * rate) for seconds in (CUT_FROM, CUT_TO))
        offset = _quietest(samples[first:last], rate, int(scale * (CUT_AT - CUT_FROM) * rate))
        pieces.append((start, first + offset))
        start = first + offset
    return [*pieces, (start, len(samples))]


def is_silent(samples: NDArray[np.float32], rate: int) -> bool:
    """Whether no part of it is loud enough to be speech."""
    return bool(_loudness(samples, rate).max(initial=0.0) < SILENCE)


def transcribe_prompt(language: str, translate_to: str | None = None) -> str:
    """What the model card says to ask."""
    if translate_to is not None:
        return (
            f"Transcribe the following speech segment in {language}, then translate it into {translate_to}.\n"
            f"When formatting the answer, first output the transcription in {language}, then one newline, then output "
            f"the string '{translate_to}: ', then the translation in {translate_to}."
        )
    return (
        f"Transcribe the following speech segment in {language} into {language} text.\n\n"
        "Follow these specific instructions for formatting the answer:\n"
        "*   Only output the transcription, with no newlines.\n"
        "*   When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, and write 3 instead "
        "of three."
    )


def split_translation(answer: str, translate_to: str) -> tuple[str, str]:
    """The transcription and the translation in an answer to `transcribe_prompt`; a missing one is ""."""
    original, _, translation = answer.partition("\n")
    return original.strip(), translation.strip().removeprefix(f"{translate_to}:").strip()


def _loudness(samples: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """Root mean square of each frame; the last frame may be short."""
    frame = int(FRAME_S * rate)
    padded = np.pad(samples.astype(np.float64), (0, -len(samples) % frame))
    loudness: NDArray[np.float64] = np.sqrt((padded.reshape(-1, frame) ** 2).mean(axis=1))
    return loudness


def _quietest(samples: NDArray[np.float32], rate: int, wanted: int) -> int:
    """Offset of the quietest moment, the nearest to `wanted` where several are equally quiet."""
    loudness = _loudness(samples, rate)
    smooth = np.convolve(np.pad(loudness, SMOOTH_FRAMES // 2, mode="edge"), np.ones(SMOOTH_FRAMES), mode="valid")
    frame = int(FRAME_S * rate)
    quiet = np.flatnonzero(smooth <= smooth.min() + 1e-9)
    nearest = quiet[np.abs(quiet * frame + frame // 2 - wanted).argmin()]
    return int(min(nearest * frame + frame // 2, len(samples) - 1))
