"""The image tower's graph.

Inputs
    pixel_values [N, 3 * patch^2] float32 in 0..1    the N = gw * gh patches of one image, row by row, none for padding
    pixel_position_ids [N, 2] int64                  (x, y) of each; gw and gh are multiples of the pooling size and at
                                                     most the largest budget times it
Output
    image_features [N / pool^2, H] float32           soft tokens of the decoder's hidden size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.export.graph import FLOAT, INT64, MS, Graph
from edge_runtime.export.matrix import head_rows
from edge_runtime.export.tower import clipped_linear, norm, project
from edge_runtime.gemma.image import BUDGETS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.export.weights import Weights
    from edge_runtime.gemma.geometry import VisionGeometry


def build_vision(graph: Graph, weights: Weights, embedder: Weights, vision: VisionGeometry, hidden_size: int) -> None:
    """Adds the whole tower to an empty graph.

    Args:
        graph: Where to.
        weights: The tower's tensors.
        embedder: Those of the projection into the decoder.
        vision: Its geometry.
        hidden_size: Of the decoder.

    Raises:
        EdgeRuntimeError: a tensor is missing or has the wrong shape.
    """
    _Vision(graph, weights, vision).build(embedder, hidden_size)


@dataclass
class _Vision:
    graph: Graph
    weights: Weights
    vision: VisionGeometry

    def build(self, embedder: Weights, hidden_size: int) -> None:
        graph, vision = self.graph, self.vision
        pixels = graph.input("pixel_values", FLOAT, ["patches", 3 * vision.patch_size**2])
        positions = graph.input("pixel_position_ids", INT64, ["patches", 2])
        columns, rows = graph.split(positions, [1, 1])
        columns, rows = graph.reshape(columns, -1), graph.reshape(rows, -1)
        hidden = self._embed(pixels, columns, rows)
        rotary = self._rotary(columns, rows)
        for layer in range(vision.num_layers):
            hidden = self._layer(self.weights.under(f"encoder.layers.{layer}"), hidden, rotary)
        features, eps = self._pool(hidden, columns)
        features = project(graph, embedder, features, hidden_size, vision.hidden_size, eps)
        graph.output(features, "image_features", FLOAT, ["soft_tokens", hidden_size])

    def _embed(self, pixels: str, columns: str, rows: str) -> str:
        """Patches to [1, N, D]: 2 * (pixel - 0.5) projected, and the embeddings of column and row."""
        graph, vision = self.graph, self.vision
        weights = self.weights.under("patch_embedder")
        centred = graph.op("Sub", [graph.mul(pixels, graph.scalar(2.0)), graph.scalar(1.0)])
        projection = weights.matrix("input_proj", vision.hidden_size, 3 * vision.patch_size**2)
        hidden = graph.linear(centred, projection)
        shape = (2, vision.position_table_size, vision.hidden_size)
        table = weights.vector("position_embedding_table", *shape)
        for axis, ids in enumerate((columns, rows)):
            # No image that keeps to a budget has more patches on a side.
            constant = graph.const(table[axis, : max(BUDGETS) * vision.pool_size], f"position_embedding_{axis}")
            hidden = graph.add(hidden, graph.op("Gather", [constant, ids], axis=0))
        return graph.op("Unsqueeze", [hidden, graph.ints(0)])

    def _rotary(self, columns: str, rows: str) -> tuple[str, str, str]:
        """Cosines and sines [N, head_dim / 2] (the first half turns by column, the second by row); 0..N-1 [1, N]."""
        graph, vision = self.graph, self.vision
        half = vision.head_dim // 2
        exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
        frequencies = np.float32(1.0) / np.power(np.float32(vision.rope_theta), exponents)
        constant = graph.const(frequencies[None, :], "rotary_frequencies")
        parts = []
        for ids in (columns, rows):
            position = graph.op("Cast", [graph.op("Unsqueeze", [ids, graph.ints(1)])], to=FLOAT)
            parts.append(graph.mul(position, constant))
        angles = graph.op("Concat", parts, axis=1)
        count = graph.op("Size", [columns])
        zero, one = graph.const(np.array(0, np.int64)), graph.const(np.array(1, np.int64))
        counter = graph.op("Unsqueeze", [graph.op("Range", [zero, count, one]), graph.ints(0)])
        return graph.op("Cos", [angles]), graph.op("Sin", [angles]), counter

    def _order(self) -> NDArray[np.int64]:
        """Head dimensions such that a plain half-and-half rotation turns the pairs of both axes.

        A head is (a, b) turned by column and (c, d) turned by row; as (a, c, b, d) it turns as one.
        """
        quarters = np.arange(self.vision.head_dim).reshape(4, -1)
        return quarters[[0, 2, 1, 3]].reshape(-1)

    def _layer(self, weights: Weights, hidden: str, rotary: tuple[str, str, str]) -> str:
        graph, vision = self.graph, self.vision
        size, eps = vision.hidden_size, vision.rms_eps
        attended = self._attention(
            weights.under("self_attn"), norm(graph, weights, "input_layernorm", hidden, size, eps), rotary
        )
        hidden = graph.add(hidden, norm(graph, weights, "post_attention_layernorm", attended, size, eps))
        x = norm(graph, weights, "pre_feedforward_layernorm", hidden, size, eps)
        gate = self._linear(weights, "mlp.gate_proj", x, vision.mlp_width, size)
        up = self._linear(weights, "mlp.up_proj", x, vision.mlp_width, size)
        down = self._linear(weights, "mlp.down_proj", graph.mul(graph.gelu(gate), up), size, vision.mlp_width)
        return graph.add(hidden, norm(graph, weights, "post_feedforward_layernorm", down, size, eps))

    def _attention(self, weights: Weights, x: str, rotary: tuple[str, str, str]) -> str:
        """Every patch sees every patch; scale 1 because queries and keys are normed."""
        graph, vision = self.graph, self.vision
        heads, dim, size = vision.num_heads, vision.head_dim, vision.hidden_size
        cos, sin, counter = rotary
        order = self._order()
        # Key/value heads shared by several query heads are repeated: attention without a cache takes equal numbers.
        sources = np.repeat(np.arange(vision.num_kv_heads), heads // vision.num_kv_heads)
        repeated = (sources[:, None] * dim + np.arange(dim)).reshape(-1)
        turned = (sources[:, None] * dim + order).reshape(-1)
        values = {}
        for part, rows in (("q", head_rows(heads, dim, order)), ("k", turned), ("v", repeated)):
            stored = vision.num_heads if part == "q" else vision.num_kv_heads
            y = self._linear(weights, f"{part}_proj", x, stored * dim, size, rows)
            y = graph.reshape(y, 0, 0, heads, dim)
            weight = np.ones(dim, np.float32)
            if part != "v":
                weight = weights.vector(f"{part}_norm.weight", dim)[order]
            y = graph.rms_norm(y, graph.const(weight, f"{weights.prefix}{part}_norm"), vision.rms_eps)
            y = graph.reshape(y, 0, 0, heads * dim)
            if part != "v":
                y = graph.op("RotaryEmbedding", [y, counter, cos, sin], domain=MS, num_heads=heads)
            values[part] = y
        attended = graph.op(
            "MultiHeadAttention", [values["q"], values["k"], values["v"]], domain=MS, num_heads=heads, scale=1.0
        )
        return self._linear(weights, "o_proj", attended, size, heads * dim)

    def _linear(
        self, weights: Weights, name: str, x: str, outputs: int, inputs: int, rows: NDArray[np.int64] | None = None
    ) -> str:
        under = weights.under(name)
        return clipped_linear(self.graph, under, x, outputs, inputs, clipped=self.vision.clipped, row_order=rows)

    def _pool(self, hidden: str, columns: str) -> tuple[str, float]:
        """Means over pool x pool patches [N / pool^2, D], and the eps of the norm that follows.

        The tower multiplies by sqrt(D); before a norm that only changes its eps.
        """
        graph, vision = self.graph, self.vision
        pool, size = vision.pool_size, vision.hidden_size
        last = graph.op("ReduceMax", [columns, graph.ints(0)], keepdims=1)
        width = graph.op("Div", [graph.add(last, graph.ints(1)), graph.ints(pool)])
        shape = graph.op("Concat", [graph.ints(-1, pool), width, graph.ints(pool, size)], axis=0)
        blocks = graph.op("Reshape", [hidden, shape])
        pooled = graph.op("ReduceMean", [blocks, graph.ints(1, 3)], keepdims=0)
        pooled = graph.op("Reshape", [pooled, graph.ints(-1, size)])
        if not vision.standardize:
            return pooled, vision.rms_eps / size
        pooled = graph.mul(pooled, graph.scalar(size**0.5))
        bias = graph.const(self.weights.vector("std_bias", size), "std_bias")
        scale = graph.const(self.weights.vector("std_scale", size), "std_scale")
        return graph.mul(graph.op("Sub", [pooled, bias]), scale), vision.rms_eps
