"""What the image and the audio tower have in common."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.export.graph import Graph
    from edge_runtime.export.weights import Weights


def clipped_linear(
    graph: Graph,
    weights: Weights,
    x: str,
    outputs: int,
    inputs: int,
    *,
    clipped: bool,
    row_order: NDArray[np.int64] | None = None,
) -> str:
    """Gemma4ClippableLinear: clamps its input and its output to bounds kept beside the weight, which may be infinite.

    A bound that the checkpoint lacks is infinite, as transformers has it.
    """
    inf = math.inf
    if clipped:
        x = graph.clip(x, weights.scalar("input_min", -inf), weights.scalar("input_max", inf))
    y = graph.linear(x, weights.matrix("linear", outputs, inputs, row_order=row_order))
    if clipped:
        y = graph.clip(y, weights.scalar("output_min", -inf), weights.scalar("output_max", inf))
    return y


def norm(graph: Graph, weights: Weights, name: str, x: str, size: int, eps: float) -> str:
    """RMSNorm with weight over the last axis."""
    weight = graph.const(weights.vector(f"{name}.weight", size), f"{weights.prefix}{name}.weight")
    return graph.rms_norm(x, weight, eps)


def project(graph: Graph, weights: Weights, x: str, outputs: int, inputs: int, eps: float) -> str:
    """Gemma4MultimodalEmbedder: RMSNorm without weight, then a matrix into the decoder's hidden size."""
    normed = graph.rms_norm(x, graph.const(np.ones(inputs, np.float32), f"ones_{inputs}"), eps)
    return graph.linear(normed, weights.matrix("embedding_projection", outputs, inputs))
