"""`edge-runtime eval`: quality of a model on a folder of cases, or beside its checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.cli import _kld

if TYPE_CHECKING:
    import argparse

    from edge_runtime.evaluation.runner import Report, Score

HELP = "Measures a model: by its answers to the cases of a folder, or by what rounding did to its distributions (kld)."
EXAMPLE = """edge-runtime eval wer heldout/wer --limit 50
  edge-runtime eval kld"""

_CASES_HELP = (
    "Asks a model every case of a folder (cases.jsonl and its media) and prints the scores, overall and by group. "
    "The exit status is 1 when a case could not be run; it then counts as wrong."
)

_KINDS = {
    "wer": "speech: word error rate",
    "vision": "questions on images: exact answers",
    "tools": "commands, typed or spoken: exact tool calls",
    "text": "typed questions: exact answers",
}


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_count.__name__ = "number above 0"  # argparse names the type in its message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """KIND, and what each kind takes."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, what in _KINDS.items():
        _add_cases(kinds.add_parser(name, help=what, description=_CASES_HELP))
    what = "a bundle beside its checkpoint: KL divergence, size"
    _kld.add_arguments(
        kinds.add_parser("kld", help=what, description=_kld.HELP, epilog=f"example: {_kld.EXAMPLE}"), _count
    )


def _add_cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that holds cases.jsonl")
    parser.add_argument("--model", type=Path, help="bundle folder (default: the built-in model)")
    parser.add_argument("--limit", type=_count, metavar="N", help="at most N cases of each group")
    parser.add_argument("--threads", type=_count, metavar="N", help="threads to compute with")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--show-wrong", action="store_true", help="list the cases that were not right")


def run(args: argparse.Namespace) -> int:
    """Measures and prints the report."""
    if args.kind == "kld":
        return _kld.run(args, _progress if sys.stderr.isatty() else None)
    from edge_runtime.evaluation.cases import read_cases
    from edge_runtime.evaluation.runner import evaluate

    cases = read_cases(args.folder, args.kind, args.limit)  # first: a wrong folder is said before a model is loaded
    from edge_runtime.cli._loading import load_model

    model = load_model(args.model, threads=args.threads)
    try:
        report = evaluate(model, args.kind, cases, _progress if sys.stderr.isatty() else None)
        name = model.info["name"]
    finally:
        model.close()
    if args.json:
        print(json.dumps({"model": name, **report.to_dict(wrong=args.show_wrong)}, indent=2, ensure_ascii=False))
    else:
        _print(report, name, show_wrong=args.show_wrong)
    return 1 if report.total.failed else 0


def _progress(done: int, total: int) -> None:
    end = "\r" if done < total else "\r\033[K"
    print(f"{done}/{total}" if done < total else "", end=end, file=sys.stderr, flush=True)


def _print(report: Report, name: str, *, show_wrong: bool) -> None:
    if show_wrong:
        for outcome in report.outcomes:
            if not outcome.right:
                print(f"line {outcome.case.line} [{outcome.case.group}]")
                print(f"  expected: {_short(outcome.expected)}")
                print(f"  found:    {outcome.failure or _short(outcome.found)}")
        print()
    width = max(len(group) for group in [*report.groups, "overall"])
    for group, part in {**report.groups, "overall": report.total}.items():
        print(f"{group:<{width}}  {_figures(report, part)}")
    for outcome in report.outcomes:
        if outcome.failure is not None and not show_wrong:
            print(f"could not run line {outcome.case.line} [{outcome.case.group}]: {outcome.failure}", file=sys.stderr)
    total = report.total
    print(f"{name}: {total.cases} cases in {report.seconds:.1f} s ({report.seconds / total.cases:.2f} s each)")


def _figures(report: Report, part: Score) -> str:
    failed = f", {part.failed} could not be run" if part.failed else ""
    exact = f"{part.right / part.cases:6.1%} exact ({part.right}/{part.cases}){failed}"
    return f"WER {part.rate:6.1%} of {part.weight} words, {exact}" if report.kind == "wer" else exact


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
