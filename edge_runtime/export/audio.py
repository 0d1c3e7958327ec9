"""The audio tower's graph: a causal conformer over log-mel frames, for a whole clip or for one that is still going on.

Inputs
    input_features [1, T, mel bins] float32
    input_features_mask [1, T] bool           which frames are sound; the rest is padding, at the end only
State, inputs that may be left out: a clip then begins (float32 unless said; P = context_left - 1 tokens)
    past_features [1, 3, mel bins]            the last frames
    past_mask [1, P] bool                     which of the tokens below there are
    past_keys, past_values [layers, P, D]     of the last tokens
    past_convolution [layers, D, k - 1]       what the light convolutions last took in
Outputs
    audio_features [n, H] float32             soft tokens of the decoder's hidden size, those of padding left out
    present_features, present_mask, present_keys, present_values, present_convolution     the state after this run

A clip may be cut anywhere between soft tokens, so into runs of T = 4n frames, the last of any length: the runs' soft
tokens are those of the whole clip, since nothing looks ahead past a token's own frames (where `context_right` is 0).

Attention is local: a block of `chunk_size` frames sees itself and a few frames before it, so each block is multiplied
with its own window of keys. What a query sees depends on distances only, so that blocks may begin anywhere. Terms that
depend on weights only (the keys of relative positions, the scale of each query dimension, the soft cap's division) are
worked out at export.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.export.graph import BOOL, FLOAT, Graph
from edge_runtime.export.matrix import on_grid
from edge_runtime.export.tower import clipped_linear, norm, project

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.export.weights import Weights
    from edge_runtime.gemma.geometry import AudioGeometry

_EPS = 1e-6  # of the norms that transformers builds without the config's
_OVERLAP = 3  # frames before its own four that a soft token hears through the two convolutions


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
    queries: str
    """Frame of each query of each block, int64 [blocks, chunk]; the last one again past the end."""
    keys: str
    """Frame of each key of each block's window, counted from the oldest kept one, int64 [blocks, context]; likewise."""
    visible: str
    """Whether a query sees a key, bool [blocks, 1, chunk, context]."""


@dataclass
class _Audio:
    graph: Graph
    weights: Weights
    audio: AudioGeometry

    def __post_init__(self) -> None:
        audio = self.audio
        layers, size = audio.num_layers, audio.hidden_size
        self.past = audio.context_left - 1
        """Frames of a block's window that lie before the block."""
        self.context = audio.chunk_size + self.past + audio.context_right
        """Frames of a block's window."""
        self.state: dict[str, tuple[int, ...]] = {
            "features": (1, _OVERLAP, audio.mel_bins),
            "mask": (1, self.past),
            "keys": (layers, self.past, size),
            "values": (layers, self.past, size),
            "convolution": (layers, size, audio.conv_kernel_size - 1),
        }
        """Shapes of what is kept from run to run."""
        self.before: dict[str, list[str]] = {}
        self.after: dict[str, list[str]] = {name: [] for name in self.state}

    def build(self, embedder: Weights, hidden_size: int) -> None:
        graph, audio = self.graph, self.audio
        features = graph.input("input_features", FLOAT, [1, "frames", audio.mel_bins])
        mask = graph.input("input_features_mask", BOOL, [1, "frames"])
        self.before = {name: self._parts(name, shape) for name, shape in self.state.items()}
        hidden, mask = self._subsample(self._follow("features", features), mask)
        blocks = self._blocks(mask, self._follow("mask", mask))
        for layer in range(audio.num_layers):
            hidden = self._layer(self.weights.under(f"layers.{layer}"), hidden, blocks)
        output = self.weights.matrix("output_proj", audio.output_dim, audio.hidden_size)
        bias = graph.const(self.weights.vector("output_proj.bias", audio.output_dim), "output_proj.bias")
        hidden = graph.linear(hidden, output, bias=bias)
        hidden = graph.op("Compress", [hidden, graph.reshape(mask, -1)], axis=1)
        hidden = graph.reshape(hidden, -1, audio.output_dim)
        tokens = project(graph, embedder, hidden, hidden_size, audio.output_dim, audio.rms_eps)
        graph.output(tokens, "audio_features", FLOAT, ["soft_tokens", hidden_size])
        for name, shape in self.state.items():
            kept = graph.op("Concat", self.after[name], axis=0)
            graph.output(kept, f"present_{name}", BOOL if name == "mask" else FLOAT, shape)

    def _parts(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Declares a part of the state, left out at a clip's beginning, and takes it apart: [1, ...] per layer."""
        graph, mask = self.graph, name == "mask"
        value = graph.const(np.zeros(shape, np.bool_ if mask else np.float32), f"past_{name}")
        graph.input(value, BOOL if mask else FLOAT, shape)
        return graph.op_n("Split", [value, graph.ints(*[1] * shape[0])], shape[0], axis=0)

    def _follow(self, name: str, x: str) -> str:
        """Puts x behind what the state has of it, and the end of both into the state; called by the layers in order."""
        axis = 2 if name == "convolution" else 1
        joined = self.graph.op("Concat", [self.before[name][len(self.after[name])], x], axis=axis)
        self.after[name].append(self.graph.last(joined, self.graph.ints(self.state[name][axis]), axis))
        return joined

    def _subsample(self, features: str, mask: str) -> tuple[str, str]:
        """Two convolutions of stride 2: a quarter of the frames [1, T/4, D] and their mask [1, T/4].

        `features` begins `_OVERLAP` frames before `mask`. A clip's first frames follow zeros, as padding would have it.
        """
        graph, audio = self.graph, self.audio
        weights = self.weights.under("subsample_conv_projection")
        x = graph.op("Unsqueeze", [features, graph.ints(1)])
        mask = graph.op("Concat", [graph.const(np.ones((1, _OVERLAP), np.bool_)), mask], axis=1)
        channels = 1
        for index, outputs in enumerate(audio.conv_channels):
            layer = weights.under(f"layer{index}")
            sound = graph.op("Cast", [graph.op("Unsqueeze", [mask, graph.ints(1, 3)])], to=FLOAT)
            kernel = graph.const(layer.vector("conv.weight", outputs, channels, 3, 3), f"{layer.prefix}conv")
            x = graph.op("Conv", [graph.mul(x, sound), kernel], strides=[2, 2], pads=[0, 1, 1, 1], kernel_shape=[3, 3])
            scale = graph.const(layer.vector("norm.weight", outputs), f"{layer.prefix}norm")
            x = graph.op("LayerNormalization", [graph.transpose(x, 0, 2, 3, 1), scale], axis=-1, epsilon=audio.rms_eps)
            x = graph.op("Relu", [x])
            if index == 0:
                x = graph.transpose(x, 0, 3, 1, 2)
            every_other = [graph.ints(1), graph.ints(np.iinfo(np.int64).max), graph.ints(1), graph.ints(2)]
            mask = graph.op("Slice", [mask, *every_other])
            channels = outputs
        width = (audio.mel_bins // 4) * channels
        x = graph.reshape(x, 0, 0, width)
        return graph.linear(x, weights.matrix("input_proj_linear", audio.hidden_size, width)), mask

    def _blocks(self, mask: str, known: str) -> _Blocks:
        """`mask` [1, frames] is that of the frames of this run, `known` [1, past + frames] begins with those before."""
        graph, chunk = self.graph, self.audio.chunk_size
        frames = graph.op("Shape", [mask], start=1, end=2)
        count = graph.op("Div", [graph.add(frames, graph.ints(chunk - 1)), graph.ints(chunk)])
        zero, one = graph.const(np.array(0, np.int64)), graph.const(np.array(1, np.int64))
        numbers = graph.op("Range", [zero, graph.op("Squeeze", [count]), one])
        starts = graph.op("Unsqueeze", [graph.mul(numbers, graph.ints(chunk)), graph.ints(1)])
        queries, keys = (
            graph.add(starts, graph.const(np.arange(width, dtype=np.int64)[None], f"within_{name}"))
            for name, width in (("block", chunk), ("window", self.context))
        )
        end = graph.add(frames, graph.ints(self.past))
        there = graph.op("Less", [keys, end])
        queries = graph.op("Min", [queries, graph.op("Sub", [frames, graph.ints(1)])])
        keys = graph.op("Min", [keys, graph.op("Sub", [end, graph.ints(1)])])
        sound = graph.op("And", [graph.op("Gather", [graph.reshape(known, -1), keys], axis=0), there])
        visible = graph.op("And", [graph.op("Unsqueeze", [sound, graph.ints(1, 2)]), graph.const(self._near(), "near")])
        return _Blocks(frames, queries, keys, visible)

    def _near(self) -> NDArray[np.bool_]:
        """Which keys of its window a query sees, by distance: [1, 1, chunk, context]."""
        distance = np.arange(self.audio.chunk_size)[:, None] + self.past - np.arange(self.context)[None, :]
        before = (distance >= 0) & (distance < self.past)
        after = (distance < 0) & (-distance < self.audio.context_right)
        return (before | after)[None, None]

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
        """Gated light convolution over each frame and those just before it."""
        graph, audio = self.graph, self.audio
        size, kernel, eps = audio.hidden_size, audio.conv_kernel_size, audio.rms_eps
        x = norm(graph, weights, "pre_layer_norm", hidden, size, eps)
        value, gate = graph.split(self._linear(weights, "linear_start", x, 2 * size, size), [size, size])
        x = graph.transpose(graph.mul(value, graph.op("Sigmoid", [gate])), 0, 2, 1)
        taps = graph.const(weights.vector("depthwise_conv1d.weight", size, 1, kernel), f"{weights.prefix}depthwise")
        x = graph.op("Conv", [self._follow("convolution", x), taps], group=size, kernel_shape=[kernel])
        x = self._silu(self._norm(weights, "conv_norm", graph.transpose(x, 0, 2, 1), eps))
        return graph.add(self._linear(weights, "linear_end", x, size, size), hidden)

    def _attention(self, weights: Weights, x: str, blocks: _Blocks) -> str:
        graph, audio = self.graph, self.audio
        size, heads = audio.hidden_size, audio.num_heads
        dim = size // heads
        scale, positions = self._scales(weights, dim)
        query = self._linear(weights, "q_proj", x, size, size)
        query = graph.mul(graph.reshape(query, -1, heads, dim), graph.const(scale, f"{weights.prefix}query_scale"))
        query = graph.transpose(graph.op("Gather", [query, blocks.queries], axis=0), 0, 2, 1, 3)
        key, value = (
            graph.op("Gather", [graph.reshape(self._follow(name, y), -1, heads, dim), blocks.keys], axis=0)
            for name, y in (
                ("keys", self._linear(weights, "k_proj", x, size, size)),
                ("values", self._linear(weights, "v_proj", x, size, size)),
            )
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
        projection = weights.matrix("relative_k_proj", audio.hidden_size, audio.hidden_size)
        encoding = on_grid(encoding, projection.rounding.input)
        keys = on_grid(encoding @ projection.rows(0, audio.hidden_size).T, projection.rounding.output)
        positions = (keys / key_scale).reshape(len(steps), audio.num_heads, dim)
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
