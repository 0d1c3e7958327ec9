"""What a cold row of the per-layer table costs, by each way to read it; how exact the formats are; what checks cost.

python -m benchmarks.tables reads build/table        (as root: with --read-ahead 128 8192)
python -m benchmarks.tables formats
python -m benchmarks.tables checks BUNDLE

`reads` makes a file of random rows at E2B's size (1.2 GB) where there is none. Before each measurement its pages are
dropped from the page cache; what the disk then gives is counted by the kernel (/proc/self/io). Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.tables_read import PREFIX, PROMPT, WAYS, Reading, drop, measure_way
from edge_runtime.bundle.checksums import PAGE, Checksums, measure
from edge_runtime.bundle.manifest import verify
from edge_runtime.bundle.rows import decode, encode, prefix_bytes
from edge_runtime.bundle.tables import Table, TableSpec, write_table
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

ROWS = 262144
E2B, E4B = 8960, 10752
SPEC = TableSpec.make(rows=ROWS, dim=E2B, bits=4, block=64)
_MANY = 10_000
_NANO = Path("models/nano/checkpoint")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables", description=__doc__.split("\n\n", maxsplit=1)[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    reads_parser = verbs.add_parser("reads", help="cold rows, by each way to read them")
    reads_parser.add_argument("table", type=Path, help="file to read, made if there is none")
    reads_parser.add_argument("--read-ahead", type=int, nargs="+", metavar="KB", help="settings of the disk (as root)")
    verbs.add_parser("formats", help="size, pages and rounding error of the formats")
    checks_parser = verbs.add_parser("checks", help="what checksums cost when a bundle is loaded and verified")
    checks_parser.add_argument("bundle", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.verb == "formats":
        formats()
    elif arguments.verb == "checks":
        checks(arguments.bundle)
    else:
        reads(arguments.table, arguments.read_ahead)


# Reads ----------------------------------------------------------------------------------------------------------------


def reads(path: Path, settings: Sequence[int] | None) -> None:
    """Two tables: cold rows by way and read-ahead, and warm rows."""
    if not path.exists():
        _make(path)
    with _read_ahead(path) as knob:
        for kib in settings or [knob.value]:
            knob.set(kib)
            print(
                f"\nread_ahead_kb {kib}: distinct random rows of {prefix_bytes(SPEC, E2B)} bytes, page cache dropped\n"
            )
            print(
                f"| way | {PROMPT} rows: KiB from disk a row | ms | {_MANY} rows: KiB a row | µs a row | resident MB |"
            )
            print("|---|---|---|---|---|---|")
            for way in WAYS:
                few, many = (_apart(measure_way, path, SPEC, way, count) for count in (PROMPT, _MANY))
                print(
                    f"| {way} | {few.kib:.1f} | {few.seconds * 1e3:.1f} | {many.kib:.1f} | "
                    f"{many.seconds / _MANY * 1e6:.0f} | {many.resident / 1e6:+.0f} |"
                )
    print("\nwarm, decoded to float32\n\n| read | µs a row | with checksums |\n|---|---|---|")
    crcs = measure(path, PAGE).crcs
    for label, count, columns in (("a token, all layers", 1, E2B), (f"{PROMPT} tokens, own layers", PROMPT, PREFIX)):
        plain, checked = (_warm(path, pages, count, columns) for pages in (None, crcs))
        print(f"| {label} | {plain * 1e6:.1f} | {checked * 1e6:.1f} |")


def _make(path: Path) -> None:
    """Rows whose bytes are random, but for a factor that keeps their values finite."""
    rng = np.random.default_rng(0)

    def groups() -> Iterator[NDArray[np.uint8]]:
        step = 7 * 512
        for start in range(0, ROWS, step):
            rows = np.frombuffer(rng.bytes(min(step, ROWS - start) * SPEC.row_bytes), np.uint8)
            rows = rows.reshape(-1, SPEC.row_bytes).copy()
            rows[:, :4] = np.array([1e-6], np.float32).view(np.uint8)
            yield rows

    write_table(path, SPEC, groups())
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _apart(function: Any, *arguments: Any) -> Reading:
    """In a process of its own, for its resident size."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: Reading = pool.apply(function, arguments)
        return result


def _warm(path: Path, pages: NDArray[np.uint32] | None, count: int, columns: int) -> float:
    """Seconds a row, the best of several rounds over the same rows."""
    ids = np.random.default_rng(3).choice(ROWS, PROMPT, replace=False)
    best = float("inf")
    with Table(path, SPEC, pages) as table:
        for _ in range(6):
            started = time.perf_counter()
            for start in range(0, PROMPT, count):
                table.read(ids[start : start + count], 0, columns)
            best = min(best, time.perf_counter() - started)
    return best / PROMPT


@dataclass
class _Knob:
    file: Path

    @property
    def value(self) -> int:
        return int(self.file.read_text(encoding="ascii"))

    def set(self, kib: int) -> None:
        if kib != self.value:
            self.file.write_text(str(kib), encoding="ascii")


@contextlib.contextmanager
def _read_ahead(path: Path) -> Iterator[_Knob]:
    """The disk's read-ahead in KiB; as it was before, afterwards."""
    device = path.stat().st_dev
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    folder = folder if (folder / "queue").is_dir() else folder.parent  # a partition's disk
    knob = _Knob(folder / "queue" / "read_ahead_kb")
    before = knob.value
    try:
        yield knob
    finally:
        knob.set(before)


# Formats --------------------------------------------------------------------------------------------------------------


def formats() -> None:
    """Bytes, pages and rounding error."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((400, E2B)).astype(np.float32)
    samples = {"normal": normal, "4-bit grid of 32": _on_grid(normal), "built-in model": _built_in()}
    print(
        "| bits | block | E2B bytes | pages a row | E4B bytes | pages a row | relative error: "
        + " | ".join(samples)
        + " |"
    )
    print("|---" * (6 + len(samples)) + "|")
    for bits, block in ((4, 32), (4, 64), (4, 256), (8, 32), (8, 64), (32, 32)):
        cells = []
        for dim in (E2B, E4B):
            spec = TableSpec.make(rows=ROWS, dim=dim, bits=bits, block=block)
            length = prefix_bytes(spec, dim)
            pages = [(spec.position(row) % PAGE + length - 1) // PAGE + 1 for row in range(ROWS // 16)]
            cells.append(f"{spec.size:,} | {np.mean(pages):.2f}")
        for values in samples.values():
            spec = TableSpec.make(rows=len(values), dim=values.shape[1], bits=bits, block=block)
            error = decode(encode(values, spec), spec, 0, spec.dim) - values
            cells.append(f"{np.linalg.norm(error) / np.linalg.norm(values):.2%}")
        print(f"| {bits} | {block if bits < 32 else ''} | {' | '.join(cells)} |")


def _on_grid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """As quantisation-aware training leaves them: levels of blocks of 32 by Q4_0's rule, as bfloat16."""
    blocks = values.reshape(-1, 32)
    scales = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[:, None], -1) / -8
    rounded = (np.clip(np.rint(blocks / scales), -8, 7) * scales).astype(np.float32)
    return ((rounded.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32).reshape(values.shape)


def _built_in() -> NDArray[np.float32]:
    from edge_runtime.export.safetensors import Checkpoint  # noqa: PLC0415

    with Checkpoint(_NANO) as checkpoint:
        name = next(name for name in checkpoint.names() if "embed_tokens_per_layer" in name)
        return checkpoint.get(name).read()


# Checks ---------------------------------------------------------------------------------------------------------------


def checks(bundle: Path) -> None:
    """Seconds to load with and without checksums, and to verify, cold and warm."""
    print(f"| {bundle.name} | cold | warm |\n|---|---|---|")
    print(f"| load, files not checked | {_times(_load_unchecked, bundle)} |")
    print(f"| load | {_times(_load, bundle)} |")
    print(f"| verify | {_times(_verify, bundle)} |")


def _times(function: Any, bundle: Path) -> str:
    cells = []
    for cold in (True, False):
        best = float("inf")
        for _ in range(3):
            if cold:
                for path in bundle.iterdir():
                    drop(path)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                best = min(best, pool.apply(function, (bundle,)))
        cells.append(f"{best:.2f} s")
    return " | ".join(cells)


def _load(bundle: Path) -> float:
    started = time.perf_counter()
    OnnxEngine(bundle).close()
    return time.perf_counter() - started


def _load_unchecked(bundle: Path) -> float:
    Checksums.check = lambda *_: None  # type: ignore[method-assign]
    return _load(bundle)


def _verify(bundle: Path) -> float:
    started = time.perf_counter()
    if problems := verify(bundle):
        raise EdgeRuntimeError(problems[0])
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
