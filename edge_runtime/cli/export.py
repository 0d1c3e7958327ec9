"""`edge-runtime export`: Hugging Face checkpoint folder -> bundle folder."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from edge_runtime.export import ExportReport

HELP = "Turn a Hugging Face checkpoint of Gemma 4 into a bundle. No torch is needed, and little memory."
EXAMPLE = "edge-runtime export ./gemma-4-E2B-it ./e2b-int4 --recipe int4"

_BAR_AFTER = 2.0  # seconds
_BAR_WIDTH = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder with config.json and safetensors")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder to make")
    parser.add_argument("--recipe", default="int4", help="int4 (default) or fp32")
    parser.add_argument("--drafter", type=Path, metavar="DIR", help="checkpoint of the model's drafter (assistant)")
    parser.add_argument("--force", action="store_true", help="replace BUNDLE if it is a bundle")
    parser.add_argument("--json", action="store_true", help="print sizes, seconds, peak memory and errors as JSON")


def run(args: argparse.Namespace) -> int:
    """Exports, then prints a summary."""
    from edge_runtime.export import export_checkpoint

    bar = _Bar()
    try:
        report = export_checkpoint(
            args.checkpoint,
            args.bundle,
            recipe=args.recipe,
            drafter=args.drafter,
            progress=bar.show,
            force=args.force,
        )
    finally:
        bar.clear()
    print(json.dumps(report.to_json()) if args.json else _summary(report))
    return 0


def _summary(report: ExportReport) -> str:
    data = report.to_json()
    size = f"{data['total_bytes'] / 1e6:.1f} MB in {len(report.sizes)} files"
    cost = f"{report.seconds:.1f} s, {report.peak_memory / 1e6:.0f} MB of memory at most"
    lines = [f"{report.bundle}: {report.recipe}, {size}, {cost}"]
    for bits, error in data["relative_error"].items():
        extent = f"{error['mean']:.2%} on average, {error['worst']:.2%} at worst ({error['worst_tensor']})"
        lines.append(f"  {bits}: {error['tensors']} matrices, relative error {extent}")
    return "\n".join(lines)


class _Bar:
    """A progress bar on stderr, if that is a terminal and the work takes over two seconds."""

    def __init__(self) -> None:
        self._enabled = sys.stderr.isatty()
        self._started = time.monotonic()
        self._drawn = False

    def show(self, label: str, done: int, total: int) -> None:
        """Draws the bar."""
        if not self._enabled or time.monotonic() - self._started < _BAR_AFTER:
            return
        filled = _BAR_WIDTH * done // max(total, 1)
        line = f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {done}/{total} {label}"
        print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
        self._drawn = True

    def clear(self) -> None:
        """Removes it."""
        if self._drawn:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._drawn = False
