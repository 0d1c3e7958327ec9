"""The audio tower's graph: a causal conformer over log-mel frames.

Inputs
    input_features [1, T, mel bins] float32
    input_features_mask [1, T] bool           which frames are sound; the rest is padding
Output
    audio_features [n, H] float32             soft tokens of the decoder's hidden size, those of padding left out

Attention is local: a block of `chunk_size` frames sees itself and a few frames before it, so each block is multiplied
with its own window of keys. Terms that depend on weights only (the keys of relative positions, the scale of each query
dimension, the soft cap's division) are worked out at export.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.export.graph import BOOL, FLOAT, INT64, Graph
from edge_runtime.export.tower import clipped_linear, norm, project

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.export.weights import Weights
    from edge_runtime.gemma.geometry import AudioGeometry

_EPS = 1e-6  # of the norms that transformers builds without the config's


def build_audio(graph: Graph, weights: Weights, embedder: Weights, audio: AudioGeometry, hidden_size: int) -> None:
    """Adds the whole tower to an empty graph.

    Args:
        graph: Where to.
        weights: The tower's tensors.
        embedder: Those of the projection into the decoder.
        audio: Its geometry.
        hidden_size: Of the decoder.

    Raises:
        EdgeRuntimeError: a tensor is missing or has the wrong shape.
    """
    _Audio(graph, weights, audio).build(embedder, hidden_size)


@dataclass
class _Blocks:
    """Values that all layers share."""

    frames: str
    """Number of frames, int64 [1]."""
    padding: str
    """Frames that fill the last block, int64 [1]."""
    windows: str
    """Frame of each key of each block, int64 [blocks, context]."""
    visible: str
    """Whether a query sees a key, bool [blocks, 1, chunk, context]."""


@dataclass
class _Audio:
    graph: Graph
    weights: Weights
    audio: AudioGeometry

    @property
    def past(self) -> int:
        """Frames of a block's window that lie before the block."""
        return self.audio.context_left - 1

    @property
    def context(self) -> int:
        """Frames of a block's window."""
        return self.audio.chunk_size + self.past + self.audio.context_right

    def build(self, embedder: Weights, hidden_size: int) -> None:
        graph, audio = self.graph, self.audio
        features = graph.input("input_features", FLOAT, [1, "frames", audio.mel_bins])
        mask = graph.input("input_features_mask", BOOL, [1, "frames"])
        hidden, mask = self._subsample(features, mask)
        blocks = self._blocks(mask)
        for layer in range(audio.num_layers):
            hidden = self._layer(self.weights.under(f"layers.{layer}"), hidden, blocks)
        output = self.weights.matrix("output_proj", audio.output_dim, audio.hidden_size)
        bias = graph.const(self.weights.vector("output_proj.bias", audio.output_dim), "output_proj.bias")
        hidden = graph.add(graph.linear(hidden, output), bias)
        hidden = graph.op("Compress", [hidden, graph.reshape(mask, -1)], axis=1)
        hidden = graph.reshape(hidden, -1, audio.output_dim)
        tokens = project(graph, embedder, hidden, hidden_size, audio.output_dim, audio.rms_eps)
        graph.output(tokens, "audio_features", FLOAT, ["soft_tokens", hidden_size])

    def _subsample(self, features: str, mask: str) -> tuple[str, str]:
        """Two convolutions of stride 2: a quarter of the frames [1, T/4, D] and their mask [1, T/4]."""
        graph, audio = self.graph, self.audio
        weights = self.weights.under("subsample_conv_projection")
        x = graph.op("Unsqueeze", [features, graph.ints(1)])
        channels = 1
        for index, outputs in enumerate(audio.conv_channels):
            layer = weights.under(f"layer{index}")
            sound = graph.op("Cast", [graph.op("Unsqueeze", [mask, graph.ints(1, 3)])], to=FLOAT)
            kernel = graph.const(layer.vector("conv.weight", outputs, channels, 3, 3), f"{layer.prefix}conv")
            x = graph.op("Conv", [graph.mul(x, sound), kernel], strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
            scale = graph.const(layer.vector("norm.weight", outputs), f"{layer.prefix}norm")
            x = graph.op("LayerNormalization", [graph.transpose(x, 0, 2, 3, 1), scale], axis=-1, epsilon=audio.rms_eps)
            x = graph.op("Relu", [x])
            if index == 0:
                x = graph.transpose(x, 0, 3, 1, 2)
            every_other = [graph.ints(0), graph.ints(np.iinfo(np.int64).max), graph.ints(1), graph.ints(2)]
            mask = graph.op("Slice", [mask, *every_other])
            channels = outputs
        width = (audio.mel_bins // 4) * channels
        x = graph.reshape(x, 0, 0, width)
        return graph.linear(x, weights.matrix("input_proj_linear", audio.hidden_size, width)), mask

    def _blocks(self, mask: str) -> _Blocks:
        graph, audio = self.graph, self.audio
        chunk = audio.chunk_size
        frames = graph.op("Shape", [mask], start=1, end=2)
        count = graph.op("Div", [graph.add(frames, graph.ints(chunk - 1)), graph.ints(chunk)])
        padding = graph.op("Sub", [graph.mul(count, graph.ints(chunk)), frames])
        zero, one = graph.const(np.array(0, np.int64)), graph.const(np.array(1, np.int64))
        numbers = graph.op("Range", [zero, graph.op("Squeeze", [count]), one])
        starts = graph.op("Unsqueeze", [graph.mul(numbers, graph.ints(chunk)), graph.ints(1)])
        # Frame numbers are those of keys with `past` frames of padding before them.
        windows = graph.add(starts, graph.const(np.arange(self.context, dtype=np.int64)[None], "window"))
        numeric = graph.op("Cast", [graph.reshape(mask, -1)], to=INT64)
        sound = graph.op("Gather", [self._pad(numeric, padding, ()), windows], axis=0)
        sound = graph.op("Cast", [graph.op("Unsqueeze", [sound, graph.ints(1, 2)])], to=BOOL)
        visible = graph.op("And", [sound, graph.const(self._near()[None, None], "near")])
        return _Blocks(frames, padding, windows, visible)

    def _near(self) -> NDArray[np.bool_]:
        """Which keys of its window a query sees, by distance: [chunk, context]."""
        distance = np.arange(self.audio.chunk_size)[:, None] + self.past - np.arange(self.context)[None, :]
        before = (distance >= 0) & (distance < self.past)
        return before | ((distance < 0) & (-distance < self.audio.context_right))

    def _pad(self, x: str, padding: str, after: tuple[int, ...]) -> str:
        """Zeros along axis 0: `past` frames in front, behind as many as the last window reaches out.

        `after` holds a 0 for each further axis.
        """
        graph = self.graph
        front = graph.ints(self.past, *after)
        behind = graph.add(padding, graph.ints(self.audio.context_right))
        parts = [front, behind, graph.ints(*after)] if after else [front, behind]
        return graph.op("Pad", [x, graph.op("Concat", parts, axis=0)])

    def _layer(self, weights: Weights, hidden: str, blocks: _Blocks) -> str:
        hidden = self._feed_forward(weights.under("feed_forward1"), hidden)
        attended = self._attention(weights.under("self_attn"), self._norm(weights, "norm_pre_attn", hidden), blocks)
        hidden = self.graph.add(self._norm(weights, "norm_post_attn", attended), hidden)
        hidden = self._convolution(weights.under("lconv1d"), hidden)
        hidden = self._feed_forward(weights.under("feed_forward2"), hidden)
        return self._norm(weights, "norm_out", hidden)

    def _norm(self, weights: Weights, name: str, x: str, eps: float = _EPS) -> str:
        """Clamps against overflow, then RMSNorm."""
        bound = self.audio.gradient_clipping
        return norm(self.graph, weights, name, self.graph.clip(x, -bound, bound), self.audio.hidden_size, eps)

    def _feed_forward(self, weights: Weights, hidden: str) -> str:
        graph, size = self.graph, self.audio.hidden_size
        x = self._norm(weights, "pre_layer_norm", hidden)
        x = self._silu(self._linear(weights, "ffw_layer_1", x, 4 * size, size))
        x = self._norm(weights, "post_layer_norm", self._linear(weights, "ffw_layer_2", x, size, 4 * size))
        return graph.add(graph.mul(x, graph.scalar(self.audio.residual_weight)), hidden)

    def _convolution(self, weights: Weights, hidden: str) -> str:
        """Gated light convolution; padded on the left only."""
        graph, audio = self.graph, self.audio
        size, kernel, eps = audio.hidden_size, audio.conv_kernel_size, audio.rms_eps
        x = norm(graph, weights, "pre_layer_norm", hidden, size, eps)
        value, gate = graph.split(self._linear(weights, "linear_start", x, 2 * size, size), [size, size])
        x = graph.transpose(graph.mul(value, graph.op("Sigmoid", [gate])), 0, 2, 1)
        taps = graph.const(weights.vector("depthwise_conv1d.weight", size, 1, kernel), f"{weights.prefix}depthwise")
        x = graph.op("Conv", [x, taps], group=size, pads=[kernel - 1, 0], kernel_shape=[kernel])
        x = self._silu(self._norm(weights, "conv_norm", graph.transpose(x, 0, 2, 1), eps))
        return graph.add(self._linear(weights, "linear_end", x, size, size), hidden)

    def _attention(self, weights: Weights, x: str, blocks: _Blocks) -> str:
        graph, audio = self.graph, self.audio
        size, heads, chunk = audio.hidden_size, audio.num_heads, audio.chunk_size
        dim = size // heads
        scale, positions = self._scales(weights, dim)
        query = self._linear(weights, "q_proj", x, size, size)
        query = graph.mul(graph.reshape(query, -1, heads, dim), graph.const(scale, f"{weights.prefix}query_scale"))
        pads = graph.op("Concat", [graph.ints(0, 0, 0), blocks.padding, graph.ints(0, 0)], axis=0)
        query = graph.transpose(graph.reshape(graph.op("Pad", [query, pads]), -1, chunk, heads, dim), 0, 2, 1, 3)
        key, value = (
            self._window(self._linear(weights, f"{part}_proj", x, size, size), blocks, heads, dim) for part in "kv"
        )
        scores = graph.op("MatMul", [query, graph.transpose(key, 0, 2, 3, 1)])
        relative = graph.op("MatMul", [query, graph.const(positions, f"{weights.prefix}positions")])
        scores = graph.op("Tanh", [graph.add(scores, self._shift(relative, positions.shape[-1]))])
        scores = graph.mul(scores, graph.scalar(audio.logit_cap))
        scores = graph.op("Where", [blocks.visible, scores, graph.scalar(audio.invalid_logit)])
        attended = graph.op("MatMul", [graph.op("Softmax", [scores], axis=-1), graph.transpose(value, 0, 2, 1, 3)])
        attended = graph.reshape(graph.transpose(attended, 0, 2, 1, 3), 1, -1, size)
        attended = graph.slice(attended, graph.ints(0), blocks.frames, 1)
        return self._linear(weights, "post", attended, size, size)

    def _window(self, x: str, blocks: _Blocks, heads: int, dim: int) -> str:
        """Each block's keys or values: [blocks, context, heads, dim]."""
        padded = self._pad(self.graph.reshape(x, -1, heads, dim), blocks.padding, (0, 0))
        return self.graph.op("Gather", [padded, blocks.windows], axis=0)

    def _scales(self, weights: Weights, dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Factor of each query dimension [dim], and keys of the relative positions [heads, dim, positions].

        Queries are scaled by dim^-0.5 / ln 2 * softplus(per_dim_scale), keys by ln(1 + e) / ln 2, the scores divided by
        the soft cap: all of it is put on the queries, and the keys' factor taken off the relative positions again.
        """
        audio = self.audio
        key_scale = math.log(1 + math.e) / math.log(2)
        per_dim = weights.vector("per_dim_scale", dim).astype(np.float64)
        scale = dim**-0.5 / math.log(2) * np.logaddexp(0.0, per_dim) * key_scale / audio.logit_cap
        steps = np.arange(self.context // 2, -1, -1, dtype=np.float32)
        scales = audio.hidden_size // 2
        increment = math.log(10_000.0) / max(scales - 1, 1)
        time = steps[:, None] * np.exp(np.arange(scales, dtype=np.float32) * np.float32(-increment))[None, :]
        encoding = np.concatenate([np.sin(time), np.cos(time)], axis=1)
        projection = weights.vector("relative_k_proj.weight", audio.hidden_size, audio.hidden_size)
        positions = (encoding @ projection.T / key_scale).reshape(len(steps), audio.num_heads, dim)
        return scale.astype(np.float32), positions.transpose(1, 2, 0).astype(np.float32)

    def _shift(self, relative: str, positions: int) -> str:
        """Scores by relative position [.., positions] -> by key [.., chunk, context] (Transformer-XL, appendix B)."""
        graph, chunk, context, heads = self.graph, self.audio.chunk_size, self.context, self.audio.num_heads
        pads = graph.ints(0, 0, 0, 0, 0, 0, 0, context + 1 - positions)
        flat = graph.reshape(graph.op("Pad", [relative, pads]), 0, 0, chunk * (context + 1))
        flat = graph.slice(flat, graph.ints(0), graph.ints(chunk * context), 2)
        return graph.reshape(flat, 0, heads, chunk, context)

    def _silu(self, x: str) -> str:
        return self.graph.mul(x, self.graph.op("Sigmoid", [x]))

    def _linear(self, weights: Weights, name: str, x: str, outputs: int, inputs: int) -> str:
        return clipped_linear(self.graph, weights.under(name), x, outputs, inputs, clipped=self.audio.clipped)
