"""How long a person waits after the last word: `python -m benchmarks.listening BUNDLE`.

Sounds of several lengths are given as they would come from a microphone, and encoded and read meanwhile, or all at
once when they are over. The time is that from the end of the sound to the first token of the answer, the median of
several runs in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.cli.demo import ASSETS
from edge_runtime.engine.loading import load
from edge_runtime.media import SAMPLE_RATE, load_audio

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from edge_runtime.engine.model import Model
    from edge_runtime.engine.protocol import Piece

VOICE = ASSETS / "voice.wav"
BLOCK_S = 0.2
PROMPT = "Transcribe."


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listening", description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.5, 5, 10, 20, 30], metavar="S", help="of sound")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each (default 3)")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    args = parser.parse_args(argv)
    with load(args.bundle, threads=args.threads) as model:
        print(*curve(model, args.seconds, args.runs), sep="\n", flush=True)


def curve(model: Model, lengths: Sequence[float], runs: int) -> list[str]:
    """A line for each length, as Markdown."""
    lines = [
        "| sound, s | heard meanwhile, s | encoded after the end, s | same text |",
        "|" + 4 * "---:|",
    ]
    for number in range(2):  # opens what is opened when first needed
        first(model, sound(1.0, number), live=bool(number))
    for length in lengths:
        waits: dict[bool, list[float]] = {True: [], False: []}
        texts: dict[bool, set[str]] = {True: set(), False: set()}
        for run in range(runs):
            for live in (True, False) if run % 2 else (False, True):
                # The same words, but never the same samples: what was heard before is of no use.
                wait, text = first(model, sound(length, 2 * run + live), live=live)
                waits[live].append(wait)
                texts[live].add(text)
        meanwhile, after = (statistics.median(waits[live]) for live in (True, False))
        same = "yes" if texts[True] == texts[False] and len(texts[True]) == 1 else "no"
        lines.append(f"| {length:g} | {meanwhile:.2f} | {after:.2f} | {same} |")
    return lines


def sound(seconds: float, number: int) -> NDArray[np.float32]:
    """Speech of that length, with noise that nobody hears and that differs with `number`."""
    words = load_audio(VOICE)
    count = int(SAMPLE_RATE * seconds)
    noise = np.random.default_rng(number).normal(0, 1e-5, count)
    return (np.resize(words, count) + noise).astype(np.float32)


def first(model: Model, samples: NDArray[np.float32], *, live: bool, tokens: int = 12) -> tuple[float, str]:
    """Seconds from the end of a sound to the first token, and the text."""
    if live:
        with model.listen(PROMPT, max_tokens=tokens, temperature=0) as listener:
            began = time.perf_counter()
            step = int(SAMPLE_RATE * BLOCK_S)
            for start in range(0, len(samples), step):
                block = samples[start : start + step]
                time.sleep(max(0.0, began + (start + len(block)) / SAMPLE_RATE - time.perf_counter()))
                listener.feed(block)
            # What feeding took longer than the sound itself is waited for, too.
            ended = began + len(samples) / SAMPLE_RATE
            return _wait(listener.finish(), ended)
    question = [{"type": "audio", "audio": samples}, {"type": "text", "text": PROMPT}]
    ended = time.perf_counter()
    return _wait(model.chat([{"role": "user", "content": question}], max_tokens=tokens, temperature=0), ended)


def _wait(pieces: Iterable[Piece], ended: float) -> tuple[float, str]:
    """Seconds since `ended` when the first token comes, and the text to its end."""
    wait, text = 0.0, ""
    for piece in pieces:
        if piece.text and not wait:
            wait = time.perf_counter() - ended
        text += piece.text
    return wait or time.perf_counter() - ended, text


if __name__ == "__main__":
    main()
