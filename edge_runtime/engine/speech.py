"""Speech to text on top of a model that listens to half a minute: what is speech, where to cut, what to ask.

Two gates keep a model from writing down what nobody said: what is not loud enough is not listened to, and what is loud
is listened to only where the voice activity detector hears speech.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.media import SAMPLE_RATE
from edge_runtime.vad import BLOCK, VoiceActivity

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SPEECH, RELEASE = 0.5, 0.35
"""Probability from which a block is speech; under which it is a pause, once speech has begun."""
LEAST_S = 0.09
"""Less speech than this in a stretch was a click."""
BRIDGE_S = 0.3
"""Shorter pauses are part of speech: people breathe, and stops are silent."""
PAUSE_S = 1.0
"""Longer pauses end a piece, so that pieces are sentences rather than half minutes."""
PAD_S = 0.3
"""Sound before and after speech that belongs to it: soft consonants."""
OVERLAP_S = 1.0
"""Where speech goes on through a cut, both pieces have this much of it, so that no word is lost."""
FRAME_S = 0.03
SMOOTH_FRAMES = 7
SILENCE = 10 ** (-50 / 20)
"""Root mean square, -50 dB of full scale, that no frame of a silent piece exceeds."""
MOST_SEAM = 6
"""Words at most that two overlapping pieces have in common."""


@dataclass(frozen=True)
class Part:
    """A piece of a recording with speech in it, in samples.

    Attributes:
        start: Where it begins.
        end: Where it ends.
        overlaps: Whether it begins with sound that the one before has, too.
    """

    start: int
    end: int
    overlaps: bool = False


def parts(samples: NDArray[np.float32], limit_s: float) -> list[Part]:
    """The parts of a recording in which somebody speaks, each at most `limit_s` seconds long, cut at pauses.

    Args:
        samples: float32 `[n]` at 16 kHz.
        limit_s: Seconds that the model takes.

    Returns:
        In order; none for silence and noise.
    """
    spoken = stretches(samples)
    limit = int(limit_s * SAMPLE_RATE)
    pad, pause = int(PAD_S * SAMPLE_RATE), int(PAUSE_S * SAMPLE_RATE)
    groups: list[list[int]] = []
    for start, end in spoken:
        if groups and start - groups[-1][1] < pause and end - groups[-1][0] + 2 * pad <= limit:
            groups[-1][1] = end
        else:
            groups.append([start, end])
    found: list[Part] = []
    for index, (start, end) in enumerate(groups):
        before = (groups[index - 1][1] + start) // 2 if index else 0
        after = (groups[index + 1][0] + end) // 2 if index + 1 < len(groups) else len(samples)
        found += _within(samples, max(before, start - pad), min(after, end + pad), limit)
    return found


def stretches(samples: NDArray[np.float32]) -> list[tuple[int, int]]:
    """(start, end) in samples of each stretch of speech, pauses up to `BRIDGE_S` in it."""
    found: list[list[int]] = []
    for first, last in _loud(samples):
        found += _spoken(samples[first:last], first)
    joined: list[tuple[int, int]] = []
    for start, end in found:
        if joined and start - joined[-1][1] <= BRIDGE_S * SAMPLE_RATE:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return [(start, min(end, len(samples))) for start, end in joined]


def _loud(samples: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Where something can be heard, a second around it: the detector wants to hear how sounds begin."""
    loud = np.flatnonzero(_loudness(samples, SAMPLE_RATE) >= SILENCE)
    frame = int(FRAME_S * SAMPLE_RATE)
    around = SAMPLE_RATE // BLOCK * BLOCK
    found: list[tuple[int, int]] = []
    for at in loud * frame:
        start, end = max(0, int(at) - around), min(len(samples), int(at) + frame + around)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _spoken(samples: NDArray[np.float32], offset: int) -> list[list[int]]:
    """Stretches of speech by the detector, with two thresholds, so that a probability that wavers ends nothing."""
    detect = VoiceActivity()
    padded = np.pad(samples, (0, -len(samples) % BLOCK))
    least = LEAST_S * SAMPLE_RATE
    found: list[list[int]] = []
    begun: int | None = None
    for start in range(0, len(padded), BLOCK):
        probability = detect(padded[start : start + BLOCK])
        if begun is None and probability >= SPEECH:
            begun = start
        elif begun is not None and probability < RELEASE:
            if start - begun >= least:
                found.append([offset + begun, offset + start])
            begun = None
    if begun is not None and len(padded) - begun >= least:
        found.append([offset + begun, offset + len(padded)])
    return found


def _within(samples: NDArray[np.float32], start: int, end: int, limit: int) -> list[Part]:
    """A stretch in parts that the model takes, cut where it is quietest in their last quarter."""
    found = []
    overlaps = False
    overlap = min(int(OVERLAP_S * SAMPLE_RATE), limit // 8)
    while end - start > limit:
        first = start + limit * 3 // 4
        last = start + limit - overlap
        at = first + _quietest(samples[first:last], SAMPLE_RATE, last - first)
        frame = int(FRAME_S * SAMPLE_RATE)
        through = bool(_loudness(samples[at - frame : at + frame], SAMPLE_RATE).max(initial=0.0) >= SILENCE)
        half = overlap // 2 if through else 0
        found.append(Part(start, at + half, overlaps))
        start, overlaps = at - half, through
    return [*found, Part(start, end, overlaps)]


def most_tokens(seconds: float) -> int:
    """Tokens that what is said in this time can have: people say five words a second at most."""
    return 24 + int(16 * seconds)


def without_seam(before: str, text: str) -> str:
    """`text` without the words at its beginning that `before` ends with: both pieces heard them."""
    words, last = text.split(), before.split()
    heard, had = [_bare(word) for word in words], [_bare(word) for word in last]
    for count in range(min(MOST_SEAM, len(heard), len(had)), 0, -1):
        if heard[:count] == had[-count:] and any(heard[:count]):
            return " ".join(words[count:])
    return text


def _bare(word: str) -> str:
    return re.sub(r"\W", "", word).casefold()


def transcribe_prompt(language: str, translate_to: str | None = None, hint: str | None = None) -> str:
    """What the model card says to ask; a hint at what will be heard comes after it."""
    if hint is not None:
        return f"{transcribe_prompt(language, translate_to)}\n\nAbout the recording, not part of it: {hint}"
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


class Teller:
    """Tells a growing text in pieces that add up to the text without spaces at its ends."""

    def __init__(self, tell: Callable[[str], None] | None, before: str) -> None:
        """Tells `tell`; `before` comes before the first piece."""
        self._tell, self._before, self._told = tell, before, 0

    def __call__(self, text: str) -> None:
        """Tells what is new in `text`, which begins with what it was before."""
        text = text.strip()
        if self._tell is not None and len(text) > self._told:
            self._tell((self._before if not self._told else "") + text[self._told :])
            self._told = len(text)


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
