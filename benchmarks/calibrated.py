"""Whether ways of rounding differ: `python -m benchmarks.calibrated PROMPTS`.

Makes off-grid twins of the built-in model (`benchmarks.offgrid`) from several seeds. A fifth of the prompts calibrates:
a bundle reads them for `edge_runtime.evaluation.moments`. All bundles of a twin are then compared with its fp32 bundle
on the other prompts, with soft tokens of the fp32 towers:

* nearest: Q4_0's rule, the extreme of a block at -8.
* int4: the recipe, which tries a few scales for each block.
* int4+: the same calibrated (GPTQ), with moments from the plain bundle.

Printed are the mean KL divergence of a token, and against a base, paired by prompts, the ratio of the means and the
geometric mean of the prompts' ratios, each with its 95 % interval from a bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import offgrid
from benchmarks.readings import Readings
from edge_runtime.builtin import checkpoint_path
from edge_runtime.evaluation.divergence import diverge
from edge_runtime.evaluation.exchanges import read_exchanges
from edge_runtime.evaluation.kld import BundleSource
from edge_runtime.evaluation.moments import collect
from edge_runtime.export import export_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edge_runtime.evaluation.exchanges import Exchange

BASES = {"nearest": "nearest", "int4": "nearest", "int4+": "int4"}
"""Each way, and the one that it is compared with."""
EVERY = 5  # of so many prompts one calibrates
DRAWS = 2000
TINY = 1e-12  # nats, added to a prompt's divergence before its logarithm is taken


def make(twin: Path, folder: Path, name: str, calibrating: Sequence[Exchange]) -> Path:
    """Exports the twin in one of the ways."""
    bundle = folder / name
    if name == "nearest":
        # What is called so is rounded by its own rule.
        export_checkpoint(twin, bundle, recipe="int4", source={"checkpoint": "twin-qat-q4_0"})
    elif name == "int4+":
        watched, moments = folder / "watched", folder / "moments.npz"
        shutil.copytree(folder / "int4", watched)
        collect(watched, calibrating, moments, threads=1)
        export_checkpoint(twin, bundle, recipe="int4", moments=moments)
    else:
        export_checkpoint(twin, bundle, recipe="int4")
    return bundle


@dataclass
class Twin:
    """One checkpoint, and what its fp32 bundle says at each token of the answers."""

    folder: Path
    seed: int
    exchanges: Sequence[Exchange]
    right: list[NDArray[np.float32]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checkpoint, exact = self.folder / "twin", self.folder / "fp32"
        offgrid.make(checkpoint_path(), self.checkpoint, self.seed)
        export_checkpoint(self.checkpoint, exact, recipe="fp32")
        with BundleSource(exact, threads=1) as source:
            self._readings = Readings(source, self.exchanges)
        with BundleSource(exact, threads=1, reader=self._readings) as source:
            self.right = [source.logits(exchange).copy() for exchange in self.exchanges]

    def divergences(self, bundle: Path) -> NDArray[np.float64]:
        """The sum of KL divergence over each prompt's answer."""
        with BundleSource(bundle, threads=1, reader=self._readings) as source:
            pairs = zip(self.right, self.exchanges, strict=True)
            return np.array([diverge(right, source.logits(exchange)).kl.sum() for right, exchange in pairs])


def compared(values: NDArray[np.float64], base: NDArray[np.float64], rng: np.random.Generator) -> str:
    """Ratio of the means and geometric mean of the prompts' ratios: [seeds, prompts] each.

    Prompts are drawn again, the twins of one model are not: what they share is no evidence.
    """
    picks = rng.integers(0, base.shape[1], (DRAWS, base.shape[1]))
    mean, mean_base = values.mean(0), base.mean(0)
    logs = np.log((values + TINY) / (base + TINY)).mean(0)
    ratios = mean[picks].mean(1) / mean_base[picks].mean(1)
    geometric = np.exp(logs[picks].mean(1))
    low, high = np.quantile(ratios, (0.025, 0.975))
    lower, upper = np.quantile(geometric, (0.025, 0.975))
    whole = f"{mean.mean() / mean_base.mean():.2f} [{low:.2f}, {high:.2f}]"
    return f"means {whole}, geometric {np.exp(logs.mean()):.2f} [{lower:.2f}, {upper:.2f}]"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compares ways of rounding on twins of the built-in model.")
    parser.add_argument("prompts", type=Path, help="evaluation sets")
    parser.add_argument("--limit", type=int, help="at most so many cases of each group")
    parser.add_argument("--seeds", type=int, default=4, help="twins (default: %(default)s)")
    args = parser.parse_args()
    exchanges = read_exchanges(args.prompts, args.limit)
    calibrating, tested = exchanges[::EVERY], [one for at, one in enumerate(exchanges) if at % EVERY]
    print(f"{len(calibrating)} prompts calibrate, {len(tested)} are compared", flush=True)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in BASES}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            twin = Twin(Path(temporary), seed, tested)
            tokens = sum(len(part) for part in twin.right)
            for name, rows in found.items():
                rows.append(twin.divergences(make(twin.checkpoint, twin.folder, name, calibrating)))
                print(f"seed {seed}  {name:8}{rows[-1].sum() / tokens:.2e}", flush=True)
    for name, base in BASES.items():
        line = compared(np.array(found[name]), np.array(found[base]), np.random.default_rng(0))
        print(f"{name:8}to {base:8}{line}", flush=True)


if __name__ == "__main__":
    main()
