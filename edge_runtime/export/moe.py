"""Mixture of experts, from operators that ONNX Runtime has on the CPU.

Its fused operator won't do: QMoE answers "Unsupported MoE activation type: geglu" there. Instead the (token, expert)
pairs are sorted by expert, so that each expert multiplies its own run of rows, and put back in order afterwards. An
expert that no token chose multiplies 0 rows, which costs little more than starting the kernel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.export.graph import INT64, Graph
from edge_runtime.export.matrix import Stored
from edge_runtime.export.quant import FP32

if TYPE_CHECKING:
    from edge_runtime.export.weights import Weights
    from edge_runtime.gemma.geometry import TextGeometry


def add_experts(graph: Graph, weights: Weights, text: TextGeometry, x: str, residual: str) -> str:
    """The outputs of each token's experts, summed by the router's weights: [1, S, H].

    Args:
        graph: Where to.
        weights: Those of the layer.
        text: The decoder's geometry.
        x: What the experts read, [1, S, H].
        residual: What the router reads, [1, S, H].

    Raises:
        EdgeRuntimeError: a tensor is missing or has the wrong shape.
    """
    hidden, taken = text.hidden_size, text.experts_per_token
    shares, chosen = _route(graph, weights, text, residual)
    pairs = graph.reshape(chosen, -1)
    order = _argsort(graph, pairs)
    counts = _counts(graph, text, pairs)
    tokens = graph.op("Div", [order, graph.const(np.array(taken, np.int64))])
    rows = graph.op("Gather", [graph.reshape(x, -1, hidden), tokens], axis=0)
    both = _each(graph, weights, text, "gate_up_proj", rows, counts)
    gate, up = graph.split(both, [text.expert_width] * 2)
    down = _each(graph, weights, text, "down_proj", graph.mul(graph.gelu(gate), up), counts)
    by_token = graph.op("Gather", [down, _argsort(graph, order)], axis=0)
    # [S, 1, taken] times [S, taken, H]: the weighted sum as one product per token.
    weighted = graph.op("MatMul", [graph.reshape(shares, -1, 1, taken), graph.reshape(by_token, -1, taken, hidden)])
    return graph.reshape(weighted, 1, -1, hidden)


def _route(graph: Graph, weights: Weights, text: TextGeometry, residual: str) -> tuple[str, str]:
    """The router: shares float32 and experts int64 of each token, both [1, S, taken].

    It stays in float32, for rounding would send tokens to other experts. H^-0.5 lives in the norm's weight.
    """
    router = weights.under("router")
    scale = router.vector("scale", text.hidden_size) * np.float32(text.hidden_size**-0.5)
    norm = graph.const(scale.astype(np.float32), f"{router.prefix}scale")
    x = graph.rms_norm(residual, norm, text.rms_eps)
    scores = graph.linear(x, router.matrix("proj", text.num_experts, text.hidden_size), FP32)
    likely = graph.op("Softmax", [scores], axis=-1)
    shares, chosen = graph.op_n("TopK", [likely, graph.ints(text.experts_per_token)], 2, axis=-1)
    shares = graph.op("Div", [shares, graph.op("ReduceSum", [shares, graph.ints(-1)])])
    factors = graph.const(router.vector("per_expert_scale", text.num_experts), f"{router.prefix}per_expert_scale")
    return graph.mul(shares, graph.op("Gather", [factors, chosen], axis=0)), chosen


def _argsort(graph: Graph, values: str) -> str:
    """The indices that sort an int64 vector; of a permutation: its inverse."""
    return graph.op_n("TopK", [values, graph.op("Shape", [values])], 2, axis=0, largest=0)[1]


def _counts(graph: Graph, text: TextGeometry, pairs: str) -> str:
    """How many of the pairs each expert has: int64 [experts]."""
    experts = graph.const(np.arange(text.num_experts, dtype=np.int64)[:, None], "experts")
    hits = graph.op("Cast", [graph.op("Equal", [experts, pairs])], to=INT64)
    return graph.op("ReduceSum", [hits, graph.ints(1)], keepdims=0)


def _each(graph: Graph, weights: Weights, text: TextGeometry, name: str, rows: str, counts: str) -> str:
    """Rows sorted by expert, each multiplied by its expert's matrix."""
    experts, width, hidden = text.num_experts, text.expert_width, text.hidden_size
    outputs, inputs = (2 * width, hidden) if name == "gate_up_proj" else (hidden, width)
    tensor = weights.tensor(f"experts.{name}", experts, outputs, inputs)
    flat = replace(tensor, shape=(experts * outputs, inputs))
    parts = graph.op_n("Split", [rows, counts], experts, axis=0)
    products = [
        graph.linear(part, Stored(flat, first=expert * outputs, last=(expert + 1) * outputs))
        for expert, part in enumerate(parts)
    ]
    return graph.op("Concat", products, axis=0)
