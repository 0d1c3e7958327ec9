"""What guessing ahead is worth: `python -m benchmarks.guesses BUNDLE [--exchanges FOLDER]`.

Measures a step over 1 to 8 tokens and, if the bundle has one, the drafter; says from these how much sooner an answer
is there when each guess is right with some probability, with the best number of guesses. With exchanges (the cases of
an evaluation folder) it also answers each of them twice, with guesses and without, in turn, and compares.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.builtin import cache_path
from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.loading import load
from edge_runtime.engine.onnx.decoder import Decoder
from edge_runtime.engine.onnx.drafter import STATE, Drafter
from edge_runtime.engine.onnx.packed import PackedGraphs
from edge_runtime.engine.speculative import gain
from edge_runtime.evaluation.exchanges import read_exchanges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.engine.model import Model
    from edge_runtime.evaluation.exchanges import Exchange

MOST = 8
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guesses", description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--context", type=int, default=100, metavar="N", help="tokens read before (default 100)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="steps of each length (default 15)")
    parser.add_argument("--exchanges", type=Path, metavar="FOLDER", help="cases to answer with guesses and without")
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="cases of each group (default 10)")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="of an answer at most (default 64)")
    args = parser.parse_args(argv)
    steps, guess = times(args.bundle, args.threads, args.context, args.rounds)
    print(*worth(steps, guess), sep="\n")
    if args.exchanges:
        with load(args.bundle, threads=args.threads) as model:
            print(*answers(model, read_exchanges(args.exchanges, args.limit), args.new_tokens), sep="\n")


def times(bundle: Path, threads: int, context: int, rounds: int) -> tuple[list[float], float | None]:
    """Medians of seconds: of steps over 1, 2, .. tokens with the logits of each, and of a guess (None: no drafter)."""
    manifest = read_manifest(bundle)
    packed = PackedGraphs.of(bundle, manifest, cache_path())
    decoder = Decoder(bundle, manifest, context=context + 2 * MOST, threads=threads, packed=packed)
    drafter = None
    if names.DRAFTER in manifest.files:
        decoder.watch([STATE])
        drafter = Drafter(bundle, manifest, context=context + 2 * MOST, threads=threads, checksums=None)
    ids = np.random.default_rng(1).integers(0, manifest.geometry.text.vocab_size, max(context, MOST))
    for start, end in decoder.cuts(context, decoder.chunk):
        decoder.step(ids[start:end], decoder.embed(ids[start:end]))
    seconds: list[list[float]] = [[] for _ in range(MOST)]
    guesses: list[float] = []
    for _ in range(rounds + 1):  # lengths take turns, so that what disturbs one disturbs all; the first warms up
        for count, found in enumerate(seconds, 1):
            token = ids[:count]
            began = time.perf_counter()
            decoder.step(token, decoder.embed(token), keep=count)
            found.append(time.perf_counter() - began)
            if drafter is not None:
                state = decoder.watched[STATE][0]
                began = time.perf_counter()
                drafter.guess(decoder, int(token[0]), state, 1)
                guesses.append(time.perf_counter() - began)
            decoder.cache.go_back(decoder.cache.total - count)
    decoder.close()
    return [statistics.median(found[1:]) for found in seconds], statistics.median(guesses[1:]) if guesses else None


def worth(steps: Sequence[float], guess: float | None) -> list[str]:
    """The times and what follows from them, as lines."""
    lines = [f"a step over one token takes {1000 * steps[0]:.2f} ms; over 1 to {len(steps)} tokens, against that:"]
    lines.append("  ".join(f"{seconds / steps[0]:.2f}" for seconds in steps))
    for what, cost in (("guesses that take no time", 0.0), ("guesses of the drafter", guess)):
        if cost is None:
            continue
        costs = [(seconds + count * cost) / steps[0] for count, seconds in enumerate(steps)]
        share = costs[1] - 1
        lines.append(f"{what} ({1000 * cost:.2f} ms each): one pays when more than {share:.0%} are right; if right:")
        for right in SHARES:
            gained, best = max((gain(right, count, against), count) for count, against in enumerate(costs))
            lines.append(f"  {right:.0%}: {gained:.2f} times as fast with {best} guesses")
    return lines


def answers(model: Model, exchanges: Sequence[Exchange], new_tokens: int) -> list[str]:
    """Each exchange with guesses and without, and what came of it, as lines."""
    totals = {True: [0.0, 0.0], False: [0.0, 0.0]}  # tokens after the first, seconds
    drafted = accepted = different = 0
    for number, exchange in enumerate(exchanges):
        texts: dict[bool, str] = {}
        for speculative in (True, False) if number % 2 else (False, True):
            _answer(model, exchange, new_tokens, speculative=speculative)  # reads the prompt for both alike
            text, usage, timing = _answer(model, exchange, new_tokens, speculative=speculative)
            texts[speculative] = text
            if timing["decode_tokens_per_s"]:
                written = usage["completion_tokens"] - 1
                totals[speculative][0] += written
                totals[speculative][1] += written / timing["decode_tokens_per_s"]
            drafted += usage.get("drafted_tokens", 0)
            accepted += usage.get("accepted_tokens", 0)
        different += texts[True] != texts[False]
    plain, guessed = (totals[key][0] / totals[key][1] for key in (False, True))
    return [
        f"{len(exchanges)} answers, {different} of them different with guesses",
        f"{accepted} of {drafted} guesses right",
        f"{plain:.1f} tokens/s without guesses, {guessed:.1f} with: {guessed / plain:.2f} times as fast",
    ]


def _answer(model: Model, exchange: Exchange, new_tokens: int, *, speculative: bool) -> tuple[str, Any, Any]:
    pieces = list(
        model.chat(
            exchange.messages,
            tools=exchange.tools or None,
            max_tokens=new_tokens,
            temperature=0,
            speculative=speculative,
        )
    )
    text = "".join(piece.text for piece in pieces) + str(pieces[-1].tool_calls)
    return text, pieces[-1].usage, pieces[-1].timing


if __name__ == "__main__":
    main()
