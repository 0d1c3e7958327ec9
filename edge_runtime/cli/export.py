"""`edge-runtime export`: Hugging Face checkpoint, from a folder or the hub -> bundle folder."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from edge_runtime.cli._bar import Bar
    from edge_runtime.export import ExportReport

HELP = (
    "Turn a Hugging Face checkpoint of Gemma 4 into a bundle. No torch is needed, and little memory. The checkpoint is "
    "a folder, a model on the hub (owner/name, owner/name@revision) or one that `edge-runtime models` lists."
)
EXAMPLE = "edge-runtime export gemma-4-e2b ./e2b-int4"
CHECKPOINT_HELP = "folder with safetensors, hub id or recipe's name"

_RECIPE = "int4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds all but the checkpoint, which `optimum-cli export edge-runtime` calls by another name."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder to make")
    parser.add_argument("--recipe", help="int4 (default), int8, mobile or fp32")
    parser.add_argument("--drafter", metavar="DIR", help="the model's drafter (assistant): folder, hub id or recipe")
    parser.add_argument("--ple-bits", type=int, choices=(4, 8), help="bits of the per-layer embedding (E2B, E4B)")
    parser.add_argument("--head-bits", type=int, choices=(4, 8), help="bits of the output head and token embedding")
    parser.add_argument("--calibrate", action="store_true", help="round with what the model multiplies (GPTQ); slower")
    parser.add_argument("--prompts", type=Path, metavar="DIR", help="what it reads for that (default: the program's)")
    parser.add_argument("--max-memory", type=_size, metavar="SIZE", help="stay under it (such as 4G) or refuse")
    parser.add_argument("--threads", type=_count, metavar="N", help="at most N (default: one for each core)")
    parser.add_argument("--force", action="store_true", help="replace BUNDLE if it is a bundle")
    parser.add_argument("--json", action="store_true", help="print sizes, seconds, peak memory and errors as JSON")


def run(args: argparse.Namespace) -> int:
    """Exports, then prints a summary."""
    # Rows are dealt out to threads already; numpy's own, which it starts when it is loaded, would fight with these.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from edge_runtime.cli._bar import Bar
    from edge_runtime.export import export_checkpoint
    from edge_runtime.export.pipeline import check_request
    from edge_runtime.export.source import resolve_source

    check_request(args.bundle, args.recipe or _RECIPE, force=args.force)
    if args.prompts and not args.calibrate:
        raise EdgeRuntimeError("--prompts are for --calibrate")
    if args.max_memory and args.calibrate:
        raise EdgeRuntimeError("--max-memory is an export's, not the model's that --calibrate runs")
    bar = Bar()
    try:
        with _stopped_by_signals():
            found = resolve_source(
                args.checkpoint,
                drafter=args.drafter,
                recipe=args.recipe,
                bundle=args.bundle,
                progress=bar.show,
                note=bar.note,
            )
            recipe = args.recipe or found.recipe or _RECIPE
            export = functools.partial(
                export_checkpoint,
                found.checkpoint,
                recipe=recipe,
                progress=bar.show,
                ple_bits=args.ple_bits,
                head_bits=args.head_bits,
                threads=args.threads,
                max_memory=args.max_memory,
            )
            whole = functools.partial(export, args.bundle, drafter=found.drafter, force=args.force)
            if args.calibrate:
                report = _calibrated(args, recipe, export, whole, found.source, bar)
            else:
                report = whole(source=found.source)
    finally:
        bar.clear()
    print(json.dumps(report.to_json()) if args.json else _summary(report))
    return 0


def _calibrated(
    args: argparse.Namespace,
    recipe: str,
    export: Callable[..., ExportReport],
    whole: Callable[..., ExportReport],
    source: Mapping[str, str],
    bar: Bar,
) -> ExportReport:
    """Exports twice: a bundle that reads the prompts, and then the one that is wanted."""
    from edge_runtime import builtin
    from edge_runtime.evaluation.exchanges import read_exchanges
    from edge_runtime.evaluation.moments import collect
    from edge_runtime.export.target import temporary_folder

    if recipe != _RECIPE:
        raise EdgeRuntimeError(f"--calibrate is for recipe {_RECIPE}, not {recipe}: no other was found better for it")
    exchanges = read_exchanges(args.prompts or builtin.heldout_path())
    with temporary_folder(args.bundle) as folder:
        plain, moments = folder / "plain", folder / "moments.npz"
        export(plain)
        tell = functools.partial(bar.show, "calibration")
        count = collect(plain, exchanges, moments, threads=args.threads, progress=tell)
        shutil.rmtree(plain)
        return whole(moments=moments, source={**source, "calibration": f"{count} prompts"})


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Lets what ends a program unwind it, so that no half bundle stays; the exit status is 128 + the signal's number.

    Only the first signal counts: another would interrupt the tidying up. One that is ignored (nohup) stays so.
    """

    def stop(number: int, _: object) -> None:
        for kind in before:
            signal.signal(kind, signal.SIG_IGN)
        sys.exit(128 + number)

    # Only the main thread may say what signals do.
    main = threading.current_thread() is threading.main_thread()
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if main else ()
    before = {kind: signal.getsignal(kind) for kind in kinds if signal.getsignal(kind) != signal.SIG_IGN}
    for kind in before:
        signal.signal(kind, stop)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _size(text: str) -> int:
    from edge_runtime.machine import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isdecimal() or text == "0":
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _summary(report: ExportReport) -> str:
    data = report.to_json()
    size = f"{data['total_bytes'] / 1e6:.1f} MB in {len(report.sizes)} files"
    cost = f"{report.seconds:.1f} s, {report.peak_memory / 1e6:.0f} MB of memory at most"
    lines = [f"{report.bundle}: {report.recipe}, {size}, {cost}"]
    for bits, error in data["relative_error"].items():
        extent = f"{error['mean']:.2%} on average, {error['worst']:.2%} at worst ({error['worst_tensor']})"
        lines.append(f"  {bits}: {error['tensors']} matrices, relative error {extent}")
    return "\n".join(lines)
