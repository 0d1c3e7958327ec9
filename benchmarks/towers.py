"""What a bundle's towers and its drafter weigh, how long they take and how much memory they need.

python -m benchmarks.towers BUNDLE [--threads N] [--repeats N]

Each line is measured in a process of its own: the shortest of the repeats, and the process's whole memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx.encoders import Encoders
from edge_runtime.engine.onnx.session import open_session
from edge_runtime.gemma.chat import Media
from edge_runtime.gemma.image import BUDGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Work = tuple[str, Callable[[], int]]
    """What is done, and a function that does it and gives the number of tokens that came."""

SECONDS = (2, 10, 30)
STREAMED_SECONDS = 4
RUNS = (1, 4, 8, 25)
"""Soft tokens a run of the stream."""
CACHED = 1000
"""Tokens in the cache that the drafter reads."""


@dataclass(frozen=True)
class Row:
    """One line of the table. Memory in bytes."""

    what: str
    tokens: int
    seconds: float
    cpu_seconds: float
    loaded: int
    peak: int
    after: int

    def __str__(self) -> str:
        """As Markdown."""
        memory = " | ".join(f"{value / 1e6:.0f}" for value in (self.loaded, self.peak, self.after))
        return f"| {self.what} | {self.tokens} | {self.seconds:.4f} | {self.cpu_seconds:.4f} | {memory} |"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.towers", description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    arguments = parser.parse_args(argv)
    geometry = read_manifest(arguments.bundle).geometry
    jobs: list[tuple[str, int]] = []
    if geometry.vision:
        jobs += [("image", budget) for budget in BUDGETS]
    if geometry.audio:
        jobs += [("audio", seconds) for seconds in SECONDS] + [("stream", tokens) for tokens in RUNS]
    if geometry.assistant:
        jobs.append(("draft", CACHED))
    for name in (names.VISION, names.AUDIO, names.DRAFTER):
        for path in (arguments.bundle / name, arguments.bundle / names.data_file(name)):
            if path.exists():
                print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    print("\n| | tokens | s | CPU s | MB loaded | MB peak | MB after |\n|---|---|---|---|---|---|---|")
    for job in jobs:
        # A process of its own, so that one job's peak is not another's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(measure, arguments.bundle, *job, arguments.threads, arguments.repeats).result()
        print(row, flush=True)


def measure(bundle: Path, kind: str, size: int, threads: int, repeats: int) -> Row:
    """Runs one job some times.

    Args:
        bundle: The bundle.
        kind: "image" of a budget, "audio" of some seconds, "stream" in runs of some soft tokens, "draft" one token.
        size: How large.
        threads: To compute with.
        repeats: How often.
    """
    what, work = WORK[kind](bundle, size, threads)
    loaded = _memory("VmRSS")
    wall, cpu = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        tokens = work()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return Row(what, tokens, min(wall), min(cpu), loaded, _memory("VmHWM"), _memory("VmRSS"))


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def _encoders(bundle: Path, tower: str, threads: int) -> Encoders:
    encoders = Encoders(bundle, read_manifest(bundle), threads)
    encoders.open(tower)
    return encoders


def _noise(seconds: float) -> Any:
    return np.random.default_rng(0).normal(0, 0.1, int(seconds * 16_000)).clip(-1, 1).astype(np.float32)


def _image(bundle: Path, budget: int, threads: int) -> Work:
    encoders = _encoders(bundle, names.VISION, threads)
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
    prepared = encoders.prepare(Media("image", pixels), budget)
    return f"image, {budget} tokens at most", lambda: len(encoders.encode(prepared))


def _audio(bundle: Path, seconds: int, threads: int) -> Work:
    encoders = _encoders(bundle, names.AUDIO, threads)
    prepared = encoders.prepare(Media("audio", _noise(seconds)))
    return f"{seconds} s of sound", lambda: len(encoders.encode(prepared))


def _stream(bundle: Path, tokens: int, threads: int) -> Work:
    encoders = _encoders(bundle, names.AUDIO, threads)
    samples, step = _noise(STREAMED_SECONDS), tokens * 640

    def run() -> int:
        stream = encoders.listen(tokens)
        found = sum(len(stream.push(samples[at : at + step])) for at in range(0, len(samples), step))
        return found + len(stream.finish())

    return f"{STREAMED_SECONDS} s of sound as it comes, {tokens * 40} ms a run", run


def _draft(bundle: Path, cached: int, threads: int) -> Work:
    session = open_session(bundle / names.DRAFTER, threads)
    sizes = {"full_attention_capacity": cached, "sliding_attention_capacity": cached, "max_positions": cached + 1}
    feed: dict[str, Any] = {}
    for value in session.get_inputs():
        shape = [sizes.get(length, length) for length in value.shape]
        if value.type == "tensor(float)":
            feed[value.name] = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        else:
            dtype = np.int64 if value.type == "tensor(int64)" else np.int32
            feed[value.name] = np.full(shape, cached - ("seqlens" in value.name), dtype)
    return f"one drafted token, {cached} cached", lambda: len(session.run(["logits"], feed)[0])


WORK = {"image": _image, "audio": _audio, "stream": _stream, "draft": _draft}

if __name__ == "__main__":
    main()
