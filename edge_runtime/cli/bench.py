"""`edge-runtime bench`: how fast a model reads and writes here, and what it takes."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from edge_runtime.engine.model import Model

HELP = "Measures a model on this machine: tokens read and written a second, time to the first token, memory."
EXAMPLE = "edge-runtime bench --model bundle --prompt-tokens 512 --new-tokens 64"

WORDS = " of the and to in a is that for it as was with be by on not he his but at are this have from or had an they"
"""Common words, each a token of its own in Gemma's vocabulary."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--model", metavar="M", help="bundle folder or GGUF file (default: the built-in model)")
    parser.add_argument("--prompt-tokens", metavar="N", type=int, default=512, help="tokens to read (default 512)")
    parser.add_argument("--new-tokens", metavar="N", type=int, default=64, help="tokens to write (default 64)")
    parser.add_argument("--context", metavar="N", type=int, help="tokens of prompt and answer together (default 4096)")
    parser.add_argument("--threads", metavar="N", type=int, help="threads to compute with")
    parser.add_argument("--memory", metavar="SIZE", help="what the model may take, such as 2G (default: what there is)")
    parser.add_argument("--kv-type", metavar="T", help="how keys and values are kept: fp32, fp16 or int8")
    parser.add_argument("--runs", metavar="N", type=int, default=3, help="runs of which medians are taken (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Loads, warms up, measures."""
    for name, least in (("prompt_tokens", 2), ("new_tokens", 2), ("runs", 1)):
        if getattr(args, name) < least:
            raise EdgeRuntimeError(f"--{name.replace('_', '-')} must be {least} or more")
    from edge_runtime.cli._loading import load_model

    started = time.perf_counter()
    options = {"context": args.context, "threads": args.threads, "memory_budget": args.memory, "kv_type": args.kv_type}
    with load_model(args.model, **options) as model:
        load_s = time.perf_counter() - started
        text = _prompt(model, args.prompt_tokens)
        list(model.complete(text, max_tokens=2, temperature=0))
        rows = []
        for number in range(args.runs):
            if sys.stderr.isatty():
                print(f"run {number + 1} of {args.runs}", end="\r", file=sys.stderr, flush=True)
            # Another beginning each time, so that nothing that was read before is of use.
            rows.append(_measure(model, f"{number} {text}", args.new_tokens))
        memory = _memory(model)
    report = {
        **_each(rows, statistics.median),
        "load_s": round(load_s, 3),
        "memory": memory,
        "min": _each(rows, min),
        "max": _each(rows, max),
    }
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0


def _prompt(model: Model, tokens: int) -> str:
    """About so many tokens of text."""
    words = WORDS.split()
    text = " ".join(words[at % len(words)] for at in range(tokens))
    last = list(model.complete(text, max_tokens=1, temperature=0))[-1]
    found = last.usage["prompt_tokens"] if last.usage else tokens
    count = max(1, tokens * tokens // found)
    return " ".join(words[at % len(words)] for at in range(count))


def _measure(model: Model, text: str, new_tokens: int) -> dict[str, float]:
    """One run; a model that ends its answer early is measured over what it wrote."""
    last = list(model.complete(text, max_tokens=new_tokens, temperature=0))[-1]
    if last.usage is None or last.timing is None:
        raise EdgeRuntimeError("the model says nothing of its times", "internal")
    read = last.usage["prompt_tokens"] - last.usage.get("cached_tokens", 0)
    first = last.timing["first_token_s"]
    return {
        "prefill_tokens_per_s": read / first if first else 0.0,
        "decode_tokens_per_s": last.timing["decode_tokens_per_s"],
        "first_token_s": first,
    }


def _each(rows: list[dict[str, float]], pick: Callable[[list[float]], float]) -> dict[str, float]:
    """One number of each figure's runs."""
    return {name: round(pick([row[name] for row in rows]), 3) for name in rows[0]}


def _memory(model: Model) -> dict[str, Any]:
    """Megabytes of this process, and of keys and values as they were planned."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - no file on a disk
        lines = dict(line.split(":", 1) for line in status if ":" in line)
    found = {
        name: round(int(lines[key].split()[0]) * 1024 / 1e6, 1)
        for name, key in (("anon_mb", "RssAnon"), ("file_mb", "RssFile"), ("peak_mb", "VmHWM"))
    }
    planned = model.memory
    return {**found, "kv_mb": round(planned.kv / 1e6, 1) if planned else None}


def _print(report: dict[str, Any]) -> None:
    for name, unit in (
        ("prefill_tokens_per_s", "tokens read a second"),
        ("decode_tokens_per_s", "tokens written a second"),
        ("first_token_s", "seconds to the first token"),
    ):
        print(f"{report[name]:10.2f}  {unit} ({report['min'][name]:.2f} to {report['max'][name]:.2f})")
    print(f"{report['load_s']:10.2f}  seconds to load")
    for name, size in report["memory"].items():
        print(f"{size if size is not None else '-':>10}  {name}")
