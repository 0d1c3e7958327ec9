"""What an export costs: seconds, cores, memory and disk, measured from outside.

python -m benchmarks.export build/e2b build/e4b --recipe int4
python -m benchmarks.export build/e2b --recipe int4 --recipe fp32 --threads 1 --max-memory 1G --out /srv

Each export runs `edge-runtime export --json` in a process of its own, whose resident size is read from /proc twenty
times a second; its processor time and the kernel's own peak come with its end. Bundles are removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERVAL = 0.05  # seconds


@dataclass(frozen=True)
class Run:
    """One export."""

    checkpoint: str
    recipe: str
    read_bytes: int
    """Of the checkpoint's weights."""
    bundle_bytes: int
    seconds: float
    cpu_seconds: float
    peak_rss: int
    """Bytes; the largest of all samples and of what the kernel says."""
    planned_rss: int
    """Bytes that the export said beforehand."""
    threads: int
    sizes: dict[str, int]


def measure(checkpoint: Path, recipe: str, options: Sequence[str], out: Path) -> Run:
    """Exports into a temporary folder in `out`.

    Raises:
        CalledProcessError: the export failed.
    """
    with tempfile.TemporaryDirectory(dir=out) as folder, tempfile.TemporaryFile() as printed:
        words = [sys.executable, "-m", "edge_runtime", "export", str(checkpoint), f"{folder}/bundle"]
        begun = time.monotonic()
        process = subprocess.Popen([*words, "--recipe", recipe, "--json", *options], stdout=printed)
        peak, usage = _watch(process)
        seconds = time.monotonic() - begun
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        printed.seek(0)
        report: dict[str, Any] = json.load(printed)
    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    return Run(
        checkpoint=checkpoint.name,
        recipe=recipe,
        read_bytes=weights,
        bundle_bytes=report["total_bytes"],
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_rss=max(peak, report["peak_memory_bytes"]),
        planned_rss=report["planned_memory_bytes"],
        threads=report["threads"],
        sizes=report["sizes"],
    )


def _watch(process: subprocess.Popen[bytes]) -> tuple[int, Any]:
    """Waits for the end: the largest resident size seen, and what the kernel says of the process."""
    peak = 0
    status = Path(f"/proc/{process.pid}/status")
    while True:
        pid, code, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(code)
            return peak, usage
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                peak = max(peak, 1024 * int(line.split()[1]))
        time.sleep(_INTERVAL)


def table(runs: Sequence[Run]) -> str:
    """The runs as a table in Markdown."""
    lines = [
        "| checkpoint | recipe | weights, GB | bundle, GB | seconds | CPU s | threads | peak, MB | promised, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run.checkpoint} | {run.recipe} | {run.read_bytes / 1e9:.2f} | {run.bundle_bytes / 1e9:.2f} | "
        f"{run.seconds:.0f} | {run.cpu_seconds:.0f} | {run.threads} | {run.peak_rss / 1e6:.0f} | "
        f"{run.planned_rss / 1e6:.0f} |"
        for run in runs
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--recipe", action="append", help="one or more; default int4")
    parser.add_argument("--out", type=Path, default=Path(), help="folder on the disk to write to (default: here)")
    parser.add_argument("--json", action="store_true", help="print the runs as JSON")
    for name in ("--drafter", "--threads", "--max-memory", "--ple-bits"):
        parser.add_argument(name, help="given to edge-runtime export")
    arguments = parser.parse_args(argv)
    options: list[str] = []
    for name in ("drafter", "threads", "max_memory", "ple_bits"):
        if value := getattr(arguments, name):
            options += [f"--{name.replace('_', '-')}", value]
    pairs = [(folder, recipe) for folder in arguments.checkpoints for recipe in arguments.recipe or ["int4"]]
    try:
        runs = [measure(folder, recipe, options, arguments.out) for folder, recipe in pairs]
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # it has said why
    print(json.dumps([asdict(run) for run in runs]) if arguments.json else table(runs))


if __name__ == "__main__":
    main()
