"""What rounding costs, ours and llama.cpp's: `python -m benchmarks.gguf_kld RESULT.json [--prompts DIR]`.

Exports the built-in model, and its off-grid twin (`benchmarks.offgrid`), by every recipe; writes them as GGUF and has
llama.cpp quantise that. Every decoder then reads the same token ids and the same soft tokens (those of the fp32
towers), with a float32 cache, and is compared with the fp32 bundle at the same answer tokens. llama.cpp's F32 shows the
floor: what two exact runtimes differ by. Draw the result with `python -m benchmarks.kld_plot RESULT.json PLOT.svg`.

Needs the `bench` extra: `pip install -e .[bench]`; llama-cpp-python is compiled by pip, some ten minutes on two cores.
An hour on the full held-out sets (`python -m models.nano.training.heldout DIR`, then --prompts DIR), two minutes on
those of the program. Rows of llama.cpp that RESULT.json has from the same prompts are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import offgrid
from benchmarks.gguf_files import write_gguf
from benchmarks.gguf_model import GgufSource, quantize, tensor_sizes
from benchmarks.readings import Readings
from edge_runtime.builtin import checkpoint_path, heldout_path
from edge_runtime.bundle import names
from edge_runtime.evaluation.exchanges import MODALITIES, read_exchanges
from edge_runtime.evaluation.kld import BundleSource, Size, kld
from edge_runtime.evaluation.saved import SavedSource, save
from edge_runtime.export import export_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.evaluation.exchanges import Exchange
    from edge_runtime.evaluation.kld import Source

OURS, LLAMA = "edge-runtime", "llama.cpp"
RECIPES = ("int8", "int4", "int4, head 8", "mobile")
"""A number after "head": bits of the output head."""
KINDS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K")
"""llama.cpp's names. All made from BF16, as publishers do, and without an importance matrix."""


class Comparison:
    """One checkpoint, its reference logits, and what was found so far."""

    def __init__(
        self, checkpoint: Path, folder: Path, exchanges: Sequence[Exchange], rows: list[dict[str, Any]]
    ) -> None:
        self._checkpoint, self._folder, self._exchanges = checkpoint, folder, exchanges
        self.rows = [row for row in rows if row["maker"] == LLAMA]
        bundle = folder / "fp32"
        export_checkpoint(checkpoint, bundle, recipe="fp32")
        with BundleSource(bundle, threads=1) as exact:
            self._readings = Readings(exact, exchanges)
        write_gguf(checkpoint, folder / "F32.gguf", wide=True)
        write_gguf(checkpoint, folder / "BF16.gguf", wide=False)
        sizes = tensor_sizes(folder / "F32.gguf")
        self.weights = sum(count for name, (_, count, _) in sizes.items() if "rope" not in name)
        with BundleSource(bundle, threads=1, reader=self._readings) as exact:
            save(folder / "reference", exact, exchanges, self.weights)

    def recipe(self, name: str) -> None:
        """Exports by a recipe and compares."""
        bundle = self._folder / name
        recipe, _, head = name.partition(", head ")
        export_checkpoint(self._checkpoint, bundle, recipe=recipe, head_bits=int(head) if head else None)
        with BundleSource(bundle, threads=1, name=name, reader=self._readings) as source:
            files = {file: entry.size for file, entry in source.manifest.files.items()}
            decoder = {file: files[file] for file in (names.data_file(names.DECODER), *source.manifest.tables)}
            self._compare(OURS, source, Size.of(source.manifest).text, decoder)

    def gguf(self, kind: str) -> None:
        """Has llama.cpp make a file of a kind and compares, if that is not done."""
        if any(row["name"] == kind for row in self.rows):
            return
        path = self._folder / f"{kind}.gguf"
        if not path.exists():
            quantize(self._folder / "BF16.gguf", path, kind)
        by_type: dict[str, int] = {}
        for stored, _, size in tensor_sizes(path).values():
            by_type[stored] = by_type.get(stored, 0) + size
        with GgufSource(path, self._readings) as source:
            self._compare(LLAMA, source, sum(by_type.values()), by_type)

    def _compare(self, maker: str, source: Source, size: int, parts: dict[str, int]) -> None:
        with SavedSource(self._folder / "reference") as reference:
            report = kld(reference, source, self._exchanges)
        row = {"maker": maker, "name": source.name, "bytes": size, "bits_per_weight": 8 * size / self.weights}
        self.rows.append({**row, "parts": parts, **report.to_dict()})
        found = report.overall
        figures = f"{found.mean:.2e} ± {found.error:.0e}  {found.quantile(0.99):.1e}  {found.top1:.2%}"
        bits = f"{size:>10,} bytes {row['bits_per_weight']:6.2f} bits"
        print(f"  {maker:<13}{source.name:<10}{bits}  {figures}", flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="KL divergence of our recipes and llama.cpp's, by bits per weight.")
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("--prompts", type=Path, help="evaluation sets (default: those of the program)")
    parser.add_argument("--limit", type=int, help="at most so many prompts of each group")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    args = parser.parse_args()
    exchanges = read_exchanges(args.prompts or heldout_path(), args.limit)
    prompts = {name: sum(exchange.modality == name for exchange in exchanges) for name in MODALITIES}
    earlier = json.loads(args.result.read_text(encoding="utf-8")) if args.result.exists() else {}
    result: dict[str, Any] = {**(earlier if earlier.get("prompts") == prompts else {}), "prompts": prompts}
    with tempfile.TemporaryDirectory() as temporary:
        twin = Path(temporary) / "twin"
        offgrid.make(checkpoint_path(), twin)
        for label, checkpoint in (("built-in", checkpoint_path()), ("off-grid", twin)):
            folder = Path(temporary) / label
            folder.mkdir()
            comparison = Comparison(checkpoint, folder, exchanges, result.get(label, {}).get("rows", []))
            print(f"{label}: {comparison.weights:,} weights, {len(exchanges)} prompts", flush=True)
            result[label] = {"weights": comparison.weights, "rows": comparison.rows}
            steps = [(comparison.gguf, kind) for kind in ("F32", "BF16", *args.kinds)]
            for step, name in [*steps, *((comparison.recipe, recipe) for recipe in args.recipes)]:
                step(name)
                args.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
