"""What the experts of 26B-A4B cost: its first layers with random weights, against the same ones without experts.

python -m benchmarks.experts build/experts --layers 2

Ideally an expert costs what reading its weights costs. The model without experts says how fast weights are read;
`times_ideal` is the whole decode step against one whose chosen experts are read at that speed. With one thread the
clock is that of the processor, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.synthetic import write
from benchmarks.synthetic_configs import config
from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx.decoder import Decoder
from edge_runtime.export import export_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTEXT, CHUNK, ROUNDS = 2048, 256, 40
VOCAB = 4096  # a small head, for it is the layers that are measured


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experts", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where checkpoints and bundles are made, and found again")
    parser.add_argument("--layers", type=int, default=2, metavar="N", help="2 (3.3 GB), up to 30")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    arguments = parser.parse_args(argv)
    folders = {kind: _bundle(arguments.folder / kind, arguments.layers, kind) for kind in ("dense", "experts")}
    json.dump(measure(folders, arguments.threads), sys.stdout, indent=2)
    print()


def measure(folders: dict[str, Path], threads: int) -> dict[str, Any]:
    """Decodes and prefills with both by turns.

    Returns:
        Milliseconds a step by bundle and tokens a step, medians; bytes a decode step reads; the ratio to the ideal.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    decoders = {
        kind: Decoder(folder, read_manifest(folder), context=CONTEXT, threads=threads, chunk=CHUNK)
        for kind, folder in folders.items()
    }
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {}
    for tokens in [CHUNK] * 3 + [1] * ROUNDS:
        for kind, decoder in decoders.items():
            ids = rng.integers(0, VOCAB, tokens)
            embeddings = decoder.embed(ids)
            begun = clock()
            decoder.step(ids, embeddings)
            times.setdefault(f"{kind}, {tokens} tokens", []).append(1000 * (clock() - begun))
    text = read_manifest(folders["experts"]).geometry.text
    dense, both = ((folder / names.data_file(names.DECODER)).stat().st_size for folder in folders.values())
    chosen = (both - dense) * text.experts_per_token // text.num_experts
    middle = {name: statistics.median(values) for name, values in times.items()}
    ideal = middle["dense, 1 tokens"] * (dense + chosen) / dense
    return {
        "threads": threads,
        "layers": text.num_layers,
        "milliseconds": {name: round(value, 2) for name, value in middle.items()},
        "bytes_read": {"dense": dense, "chosen_experts": chosen},
        "times_ideal": round(middle["experts, 1 tokens"] / ideal, 2),
    }


def _bundle(folder: Path, layers: int, kind: str) -> Path:
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    if not bundle.exists():
        if not checkpoint.exists():
            settings = config("26b-a4b", layers=layers) | {"vision_config": None}
            settings["text_config"] |= {"vocab_size": VOCAB, "enable_moe_block": kind == "experts"}
            write(checkpoint, settings)
            (checkpoint / "tokenizer.json").write_text("{}")
        export_checkpoint(checkpoint, bundle)
    return bundle


if __name__ == "__main__":
    main()
