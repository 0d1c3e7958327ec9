"""`edge-runtime eval kld`: a bundle beside the checkpoint that it was made from."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from edge_runtime.evaluation.divergence import Divergence
    from edge_runtime.evaluation.exchanges import Exchange
    from edge_runtime.evaluation.kld import BundleSource, Report, Size
    from edge_runtime.evaluation.saved import SavedSource

    Progress = Callable[[int, int], None] | None

HELP = (
    "Compares a bundle with its checkpoint, exported without rounding to a temporary folder: both read prompts and the "
    "expected answers, and at every token of an answer the KL divergence between their distributions is taken. Where "
    "two models do not fit, make the reference once with --save-reference and compare with --reference."
)
EXAMPLE = "edge-runtime eval kld ./e2b-int4 --checkpoint ./gemma-4-E2B-it"


def add_arguments(parser: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """BUNDLE and the options; `count` reads a number above 0."""
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="bundle (default: the built-in model's)")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="its source (default: the built-in model's)")
    parser.add_argument("--prompts", type=Path, metavar="DIR", help="evaluation sets (default: those of the program)")
    parser.add_argument("--limit", type=count, metavar="N", help="at most N prompts of each group")
    parser.add_argument("--save-reference", type=Path, metavar="FILE", help="keep the checkpoint's logits")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="logits kept before, instead of --checkpoint")
    parser.add_argument("--kv-type", metavar="T", help="how BUNDLE keeps keys and values: fp32, fp16 or int8")
    parser.add_argument("--threads", type=count, metavar="N", help="threads to compute with")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace, progress: Progress) -> int:
    """Makes or opens the reference, compares, prints."""
    from edge_runtime import builtin
    from edge_runtime.evaluation.exchanges import read_exchanges
    from edge_runtime.evaluation.kld import BundleSource, Size, kld
    from edge_runtime.evaluation.saved import SavedSource

    if args.reference and (args.checkpoint or args.save_reference):
        raise EdgeRuntimeError("--reference takes the place of --checkpoint and --save-reference")
    exchanges = read_exchanges(args.prompts or builtin.heldout_path(), args.limit)
    if args.save_reference:
        _save(args, exchanges, progress)
        if not args.bundle:
            print(f"{args.save_reference}: {args.save_reference.stat().st_size / 1e6:.1f} MB")
            return 0
    bundle, name = (args.bundle, args.bundle.resolve().name) if args.bundle else (builtin.bundle_path(), builtin.NAME)
    with contextlib.ExitStack() as stack:
        cache = builtin.cache_path()
        candidate = stack.enter_context(
            BundleSource(bundle, threads=args.threads, name=name, kv_type=args.kv_type, cache=cache)
        )
        reference: SavedSource | BundleSource
        if kept := args.reference or args.save_reference:
            reference = stack.enter_context(SavedSource(kept))
            weights = reference.weights
        else:
            reference, weights = stack.enter_context(_unrounded(args.checkpoint, args.threads, candidate))
        report = kld(reference, candidate, exchanges, progress)
    size = Size.of(candidate.manifest)
    if args.json:
        print(json.dumps(_to_dict(report, size, weights, candidate.name, reference.name), indent=2))
    else:
        _print(report, size, weights, candidate.name)
    return 0


def _save(args: argparse.Namespace, exchanges: list[Exchange], progress: Progress) -> None:
    from edge_runtime.evaluation.saved import save

    with _unrounded(args.checkpoint, args.threads) as (source, weights):
        save(args.save_reference, source, exchanges, weights, progress)


@contextlib.contextmanager
def _unrounded(
    checkpoint: Path | None, threads: int | None, candidate: BundleSource | None = None
) -> Iterator[tuple[BundleSource, int]]:
    """The checkpoint as a bundle without rounding and the number of its decoder's weights.

    Raises:
        EdgeRuntimeError: No checkpoint, or `candidate` is not made from one of this shape.
    """
    from edge_runtime import builtin
    from edge_runtime.cli._bar import Bar
    from edge_runtime.evaluation.kld import BundleSource, count_weights
    from edge_runtime.export import export_checkpoint

    folder = checkpoint or builtin.checkpoint_path()
    with tempfile.TemporaryDirectory(prefix="edge-runtime-") as temporary:
        bundle = Path(temporary) / folder.resolve().name
        bar = Bar()
        try:
            export_checkpoint(folder, bundle, recipe="fp32", progress=bar.show)
        finally:
            bar.clear()
        with BundleSource(bundle, threads=threads) as source:
            if candidate and candidate.manifest.geometry.text != source.manifest.geometry.text:
                hint = "is not of this shape" if checkpoint else "is not the built-in model: give its --checkpoint"
                raise EdgeRuntimeError(f"{folder}: {candidate.name} {hint}")
            yield source, count_weights(source.manifest)


def _to_dict(report: Report, size: Size, weights: int, candidate: str, reference: str) -> dict[str, Any]:
    return {
        "model": candidate,
        "reference": reference,
        **report.to_dict(),
        "total_bytes": size.total,
        "text_bytes": size.text,
        "text_weights": weights,
        "bits_per_weight": round(size.bits_per_weight(weights), 4),
    }


def _print(report: Report, size: Size, weights: int, name: str) -> None:
    print(f"{'':8}{'tokens':>7}  {'mean KLD':>19}  {'99 %':>8}  {'99.9 %':>8}  {'max':>8}  {'same top':>8}")
    for label, row in {**report.modalities, "overall": report.overall}.items():
        print(f"{label:<8}{_figures(row)}")
    bits = f"{size.text / 1e6:.1f} MB of them for text, {size.bits_per_weight(weights):.2f} bits a weight"
    print(f"{name}: {size.total / 1e6:.1f} MB, {bits}; {report.exchanges} prompts in {report.seconds:.1f} s")


def _figures(row: Divergence) -> str:
    tail = "  ".join(f"{value:8.2g}" for value in (row.quantile(0.99), row.quantile(0.999), row.kl.max()))
    return f"{row.tokens:7}  {row.mean:9.3g} ± {row.error:7.2g}  {tail}  {row.top1:8.2%}"
