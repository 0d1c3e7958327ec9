"""Recipes: how many bits each part's weights keep.

What MatMulNBits of ONNX Runtime 1.32 does quickly on CPUs, at accuracy level 4 (activations rounded to int8), K 1536 by
N 12288, one thread of an AMD Zen 3 (AVX2), milliseconds for 1 and for 256 tokens (`python -m benchmarks.kernels`):

    block            16            32            64           128
    2 bits    202   295    0.72   189    0.50   145    0.44   153
    4 bits    1.6   237    0.70   124    0.69   111    0.66   128
    8 bits    1.4   243    1.23   234    1.12   169    1.13   159

So blocks of 16 are never worth it, and at 2 bits they fall back to multiplying unpacked weights. The kernels for 2 bits
take blocks of 32, 64 and 128 on AVX2, AVX-512 and ARM with dot products alike (microsoft/onnxruntime pull requests
29064, 29466, 29619); KleidiAI, the quickest on ARM, takes 4 bits only, in blocks that 32 divides, without zero points.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.export.data import Survey
from edge_runtime.export.graph import Graph
from edge_runtime.export.mixed import deal
from edge_runtime.export.quant import FP32, Format

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.export.graph import Plan
    from edge_runtime.export.matrix import Matrix


HEAD = "embed_tokens.weight"
"""How the name of the head's matrix ends: it is the token embedding."""


@dataclass(frozen=True)
class Recipe:
    """How the weights of each part are stored.

    A matrix that already lies on a grid of no more bits, or of 4, is stored on that one.
    """

    decoder: Format
    """Its output head is the token embedding too, unless it is float32."""
    towers: Format
    drafter: Format
    per_layer_embedding: int
    """Bits: 4, 8 or 32."""
    mixed: float | None = None
    """Bits that the decoder's weights take in memory on average, scales and all; they are then dealt out, `decoder` is
    for what is left."""
    head: Format | None = None
    """Of the output head, if not as the decoder."""


RECIPES = {
    "int4": Recipe(Format(4, 32, "i8"), Format(8, 128, "i8"), Format(4, 32, "i8"), 4),
    "int8": Recipe(Format(8, 64, "i8"), Format(8, 128, "i8"), Format(8, 64, "i8"), 8),
    # Of int4's 6. At E2B that is 1.07 GB of text weights in memory, 0.95 GB in the file.
    "mobile": Recipe(Format(4, 32, "i8"), Format(4, 32, "i8"), Format(4, 32, "i8"), 4, mixed=3.75),
    "fp32": Recipe(FP32, FP32, FP32, 32),
}


KEPT = Format(8, 64, "i8")
"""Of a decoder's matrices that have no bits of their own where the others have."""

HEADS = {4: Format(4, 32, "i8"), 8: Format(8, 64, "i8")}
"""Formats that the head may be given, by bits."""


def uniform(form: Format, head: Format | None = None, *, keep: bool = False) -> Plan:
    """All matrices in one format, but for those that have their own, and for the head if it is given another.

    Args:
        form: The format.
        head: The head's.
        keep: Matrices that have their own keep it, whatever its bits, unless the format is float32.
    """

    def plan(matrix: Matrix) -> Format:
        wanted = head if head and matrix.name.endswith(HEAD) else form
        return matrix.native if keep and matrix.native and wanted != FP32 else chosen(wanted, matrix)

    return plan


def mixed(recipe: Recipe, build: Callable[[Graph], None]) -> Plan:
    """Formats dealt out under the recipe's budget.

    Args:
        recipe: With `mixed`.
        build: Adds the whole decoder to an empty graph.
    """
    survey = Survey()
    build(Graph(Path(), "survey", lambda _: recipe.decoder, data=survey))
    weights = sum(count * width for count, width in (matrix.shape for matrix in survey.matrices))
    assert recipe.mixed  # noqa: S101
    formats = deal(survey.matrices, int(weights * recipe.mixed / 8))
    return lambda matrix: formats.get(matrix.name, recipe.decoder)


def chosen(form: Format, matrix: Matrix) -> Format:
    """`form`, or the matrix's own format where that takes no more bits or only 4."""
    own = matrix.native
    if own is None or form.bits == FP32.bits or own.bits > max(4, form.bits):
        return form
    return own
