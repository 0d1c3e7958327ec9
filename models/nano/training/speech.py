"""Speaks the utterances: `python -m models.nano.training.speech OUT --processes 16 --shards 32 --per-shard 4000`.

Each shard is OUT/<set><nnn>.npy (int16 samples at 16 kHz, utterances one after the other) and OUT/<set><nnn>.json with
"utterances" (as `text.Utterance.to_dict`), "voices" and "offsets" (utterance i is samples[offsets[i]:offsets[i + 1]]).
The .json is written last: a shard without it is not finished. A shard that is there already is left as it is.
Texts and voices follow from the seed; samples nearly do (espeak-ng and Pico carry state from one sentence to the next).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

# One thread each: the processes are the parallelism. Set before numpy is imported, here and in the workers.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

try:
    from . import text as tx
    from . import voices
except ImportError:  # run from inside the folder, as on a machine without the repository
    import text as tx  # type: ignore[import-not-found, no-redef]
    import voices  # type: ignore[import-not-found, no-redef]

Spoken = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Shard:
    """A shard on disk: `samples` int16 [n] at 16 kHz (memory-mapped), and per utterance its text and voice."""

    samples: np.ndarray
    utterances: list[tx.Utterance]
    voices: list[str]
    offsets: list[int]

    def wave(self, index: int) -> np.ndarray:
        """int16 samples of one utterance."""
        return self.samples[self.offsets[index] : self.offsets[index + 1]]


def read_shard(path: Path) -> Shard:
    """The shard whose .json is `path`."""
    record = json.loads(path.read_text(encoding="utf-8"))
    samples = np.load(path.with_suffix(".npy"), mmap_mode="r")
    utterances = [tx.Utterance(**entry) for entry in record["utterances"]]
    return Shard(samples, utterances, record["voices"], record["offsets"])


def _say(job: tuple[str, str, str, frozenset[str]]) -> Spoken | str:
    return voices.say(*job)


class Speaks(Protocol):
    """What making a shard needs of a studio."""

    def speak(self, name: str, utterances: list[tx.Utterance], seed: str) -> Iterable[Spoken | str]:
        """For each utterance (voice, int16 samples), or why it could not be spoken."""


class Studio:
    """Worker processes that speak. A context manager."""

    def __init__(self, processes: int, skip: Iterable[str] = ()) -> None:
        # Spawned, not forked: the synthesizers' libraries and ONNX Runtime must not be shared half-initialised.
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=os.nice, initargs=(10,))
        self._skip = frozenset(skip)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def speak(self, name: str, utterances: list[tx.Utterance], seed: str) -> Iterator[Spoken | str]:
        """For each utterance (voice, int16 samples), or why it could not be spoken."""
        jobs = [(name, utterance.spoken, f"{seed}-{i}", self._skip) for i, utterance in enumerate(utterances)]
        return self._pool.map(_say, jobs, chunksize=max(1, min(16, len(jobs) // 64)))


def write_shard(path: Path, utterances: list[tx.Utterance], spoken: list[Spoken]) -> float:
    """Writes path.npy and path.json; returns the hours of audio."""
    offsets = np.cumsum([0, *(len(wave) for _, wave in spoken)]).tolist()
    record = {
        "utterances": [utterance.to_dict() for utterance in utterances],
        "voices": [voice for voice, _ in spoken],
        "offsets": offsets,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, np.concatenate([wave for _, wave in spoken]))
    temporary.replace(path.with_suffix(".npy"))
    temporary.write_text(json.dumps(record, separators=(",", ":")), encoding="utf-8")
    temporary.replace(path.with_suffix(".json"))
    return float(offsets[-1] / voices.RATE / 3600)


def make_shard(studio: Speaks, out: Path, name: str, index: int, count: int, seed: int) -> str:
    """Makes one shard and returns a line about it."""
    path = out / f"{name}{index:03d}"
    if path.with_suffix(".json").exists():
        return f"{path.name}: already there"
    begun = time.monotonic()
    corpus_seed = seed * 1_000_000 + (1000 if name == "train" else 500_000) + index
    utterances = tx.corpus(corpus_seed, count, heldout=name != "train")
    results = list(studio.speak(name, utterances, f"{seed}-{name}-{index}"))
    kept = [(u, s) for u, s in zip(utterances, results, strict=True) if not isinstance(s, str)]
    failed = Counter(result for result in results if isinstance(result, str))
    if not kept:
        raise RuntimeError(f"nothing could be spoken: {failed.most_common(1)[0][0]}")
    hours = write_shard(path, [u for u, _ in kept], [s for _, s in kept])
    seconds = time.monotonic() - begun
    line = f"{path.name}: {len(kept)} utterances, {hours:.2f} h in {seconds:.1f} s ({len(kept) / seconds:.0f}/s)"
    return line + "".join(f"; {number} left out ({why})" for why, number in failed.most_common(3))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speaks the nano corpus into int16 shards.")
    parser.add_argument("out", type=Path, help="folder for the shards")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--start", type=int, default=0, help="number of the first shard")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--per-shard", type=int, default=4000, help="utterances in a shard")
    parser.add_argument("--set", dest="name", choices=voices.SETS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-missing", action="store_true", help="do without engines that are not installed")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command line: 0 when every shard is there, 2 when an engine is missing."""
    args: Any = _arguments(argv)
    absent = voices.missing(args.name)
    if absent and (not args.skip_missing or args.name not in {"train", "seen"} or len(absent) == len(voices.TRAINING)):
        print(f"speech: cannot speak '{args.name}': " + "; ".join(dict.fromkeys(absent.values())), file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with Studio(args.processes, absent) as studio:
            for index in range(args.start, args.start + args.shards):
                print(make_shard(studio, args.out, args.name, index, args.per_shard, args.seed), flush=True)
    except BrokenProcessPool:
        print("speech: a synthesizer crashed its process; run the same command again to go on", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
