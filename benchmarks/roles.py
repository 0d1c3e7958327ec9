"""How much the parts of a decoder bear: `python -m benchmarks.roles PROMPTS`.

Exports the built-in model without rounding, then rounds the matrices of one role after the other to 2 bits, and
compares the answers' distributions. The last column is what the recipe "mobile" weighs a role's errors by
(`edge_runtime.export.mixed.WEIGHTS`): KL divergence over the sum of the squared relative errors, in thousandths.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.builtin import checkpoint_path
from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest, seal
from edge_runtime.evaluation.exchanges import read_exchanges
from edge_runtime.evaluation.kld import BundleSource, kld
from edge_runtime.evaluation.saved import SavedSource, save
from edge_runtime.export import export_checkpoint
from edge_runtime.export.decoder import build_decoder
from edge_runtime.export.graph import Graph
from edge_runtime.export.quant import FP32, Format
from edge_runtime.export.safetensors import Checkpoint
from edge_runtime.export.weights import Weights

if TYPE_CHECKING:
    from edge_runtime.evaluation.divergence import Divergence
    from edge_runtime.evaluation.exchanges import Exchange

ROLES = {
    "q, k and v in one": "k_proj",
    "q of layers that share keys": r"q_proj\.weight$",
    "o": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
    "per-layer gate": "per_layer_input_gate",
    "per-layer projection": "per_layer_projection",
    "per-layer context": "per_layer_model_projection",
    "head": "embed_tokens",
}


def probe(bundle: Path, checkpoint: Path, pattern: str) -> float:
    """Rounds matrices whose names match to 2 bits in the bundle; the sum of their squared relative errors."""
    manifest = read_manifest(bundle)
    with (
        Checkpoint(checkpoint) as tensors,
        Graph(
            bundle, names.DECODER, lambda matrix: Format(2) if re.search(pattern, _last(matrix.name)) else FP32
        ) as graph,
    ):
        build_decoder(graph, Weights.of_decoder(tensors), manifest.geometry.text)
        graph.save()
    seal(bundle, dataclasses.replace(manifest, files={}))
    return sum(error.relative**2 for error in graph.errors)


def _last(name: str) -> str:
    """The second part of a stack, which says that it is one."""
    return name.split("+")[1] if "+" in name else name


def compare(reference: Path, bundle: Path, exchanges: list[Exchange]) -> Divergence:
    """The bundle beside the reference's saved logits."""
    with SavedSource(reference) as right, BundleSource(bundle) as candidate:
        return kld(right, candidate, exchanges).overall


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures how much the roles of a decoder's matrices bear.")
    parser.add_argument("prompts", type=Path, help="evaluation sets")
    parser.add_argument("--limit", type=int, default=2, help="cases of each group (default: %(default)s)")
    args = parser.parse_args()
    exchanges = read_exchanges(args.prompts, args.limit)
    with tempfile.TemporaryDirectory() as temporary:
        bundle, reference = Path(temporary) / "bundle", Path(temporary) / "reference"
        export_checkpoint(checkpoint_path(), bundle, recipe="fp32")
        with BundleSource(bundle) as source:
            save(reference, source, exchanges, 0)
        for role, pattern in ROLES.items():
            error = probe(bundle, checkpoint_path(), pattern)
            found = compare(reference, bundle, exchanges)
            print(f"{role:28} {found.mean:9.3g} ± {found.error:8.2g} {1e3 * found.mean / error:8.2f}", flush=True)


if __name__ == "__main__":
    main()
