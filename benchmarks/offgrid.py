"""A twin of the built-in model that was not made for four bits: `python -m benchmarks.offgrid OUT`.

The built-in model was trained on the int4 recipe's own grid, so that rounding to it costs nothing and all int4 formats
that contain that grid look perfect. The twin has every weight of the decoder moved by a seeded, evenly spread fraction
of its step, half a step at most either way, which is what rounding took away from a model that was never trained so.
It still answers; judge rounding methods on it, the product on the original.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.synthetic import header, to_bfloat16
from edge_runtime.builtin import checkpoint_path
from edge_runtime.export.safetensors import Checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = "model.safetensors"
BLOCK = 32
_DECODER = "model.language_model."


def jitter(weight: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """`weight` [N, K], each value moved by up to half the step of its block: the largest of 32 weights is 8 steps."""
    steps = np.abs(weight.reshape(len(weight), -1, BLOCK)).max(-1) / np.float32(8)
    moved = rng.uniform(-0.5, 0.5, weight.shape).astype(np.float32)
    result: NDArray[np.float32] = weight + moved * np.repeat(steps, BLOCK, axis=1)
    return result


def make(source: Path, out: Path, seed: int = 0) -> None:
    """Writes the twin of the checkpoint `source` to the folder `out`, which must not exist."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns(WEIGHTS, "drafter"))
    rng = np.random.default_rng(seed)
    with Checkpoint(source) as checkpoint, (out / WEIGHTS).open("wb") as file:
        tensors = {name: checkpoint.get(name) for name in sorted(checkpoint.names())}
        file.write(header({name: tensor.shape for name, tensor in tensors.items()}))
        for name, tensor in tensors.items():
            values = tensor.read()
            if name.startswith(_DECODER) and values.ndim == 2:
                values = jitter(values, rng)
            file.write(to_bfloat16(values).tobytes())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Makes the built-in model's off-grid twin, a checkpoint folder.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make(checkpoint_path(), args.out, args.seed)


if __name__ == "__main__":
    main()
