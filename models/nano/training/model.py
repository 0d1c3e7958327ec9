"""The architecture as plain torch functions over a dictionary of weights, in a form that trains fast.

Same arithmetic as transformers' Gemma4ForConditionalGeneration (a test compares the two) and the same weight names, but
with fixed shapes and no host synchronisation, so that a whole training step can be captured as a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

Weights = dict[str, torch.Tensor]
TEXT = "model.language_model."
VISION = "model.vision_tower."
AUDIO = "model.audio_tower."
EPS = 1e-6
LAYER_SCALARS = (0.9, 0.85, 0.95, 0.9, 0.85, 0.95, 0.9, 1.0)


@dataclass(frozen=True)
class Shape:
    """The dimensions this form needs, read from a checkpoint's config.json."""

    hidden: int
    vocab: int
    heads: int
    layer_types: tuple[str, ...]
    head_dims: tuple[int, ...]
    mlp: tuple[int, ...]
    own_layers: int
    window: int
    ple: int
    softcap: float
    vision: dict[str, Any]
    audio: dict[str, Any]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Shape:
        """From the parsed config.json of the model."""
        text = config["text_config"]
        layers = text["num_hidden_layers"]
        own = layers - text["num_kv_shared_layers"]
        per_layer = text.get("per_layer_config") or {}
        dims = tuple(per_layer.get(str(i), {}).get("head_dim", text["head_dim"]) for i in range(layers))
        return cls(
            hidden=text["hidden_size"],
            vocab=text["vocab_size"],
            heads=text["num_attention_heads"],
            layer_types=tuple(text["layer_types"]),
            head_dims=dims,
            mlp=tuple(text["intermediate_size"] * (1 if i < own else 2) for i in range(layers)),
            own_layers=own,
            window=text["sliding_window"],
            ple=text["hidden_size_per_layer_input"],
            softcap=text["final_logit_softcapping"],
            vision=config["vision_config"],
            audio=config["audio_config"],
        )

    def kv_source(self, layer: int) -> int:
        """The layer whose keys and values `layer` reads."""
        if layer < self.own_layers:
            return layer
        same = [i for i in range(self.own_layers) if self.layer_types[i] == self.layer_types[layer]]
        return same[-1]


def norm(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """RMSNorm over the last axis."""
    return F.rms_norm(x, (x.shape[-1],), weight, EPS)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding: pairs are the first and second half of the last axis."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def text_rope(shape: Shape, length: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Tables cos and sin [length, head_dim] of both kinds of layer; the full kind turns a quarter of its pairs."""
    out = {}
    for kind, base in (("sliding_attention", 1e4), ("full_attention", 1e6)):
        dim = shape.head_dims[shape.layer_types.index(kind)]
        inverse = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(base) / dim))
        if kind == "full_attention":
            inverse[dim // 8 :] = 0
        angles = torch.arange(length, device=device)[:, None] * inverse
        angles = torch.cat((angles, angles), -1)
        out[kind] = (angles.cos().to(dtype), angles.sin().to(dtype))
    return out


def _attend(shape: Shape, kind: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    length = q.shape[2]
    k, v = (x.expand(-1, shape.heads, -1, -1) for x in (k, v))
    if kind == "full_attention" or length <= shape.window:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    position = torch.arange(length, device=q.device)
    distance = position[:, None] - position[None]
    mask = (distance >= 0) & (distance < shape.window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


def embed(w: Weights, shape: Shape, ids: torch.Tensor) -> torch.Tensor:
    """Scaled token embeddings [B, L, H]."""
    table = w[TEXT + "embed_tokens.weight"]
    return F.embedding(ids, table) * float(torch.tensor(shape.hidden**0.5).to(table.dtype))


def text_forward(
    w: Weights, shape: Shape, embeds: torch.Tensor, ids: torch.Tensor, keep_kv: bool = False
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Runs the decoder over whole rows.

    Args:
        w: The weights.
        shape: Dimensions.
        embeds: [B, L, H] with soft tokens spliced in.
        ids: [B, L]; 0 (pad) where a soft token stands.
        keep_kv: Whether to return the keys and values the drafter reads.

    Returns:
        Hidden states after the last norm [B, L, H], and {layer type: (keys, values)} of the last own layers.
    """
    batch, length, hidden = embeds.shape
    layers = len(shape.layer_types)
    rope = text_rope(shape, length, embeds.device, embeds.dtype)
    token = F.embedding(ids, w[TEXT + "embed_tokens_per_layer.weight"]) * shape.ple**0.5
    context = F.linear(embeds, w[TEXT + "per_layer_model_projection.weight"]) * hidden**-0.5
    context = norm(context.view(batch, length, layers, shape.ple), w[TEXT + "per_layer_projection_norm.weight"])
    ple = (context + token.view(batch, length, layers, shape.ple)) * 2**-0.5
    h = embeds
    store: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for i, kind in enumerate(shape.layer_types):
        p = f"{TEXT}layers.{i}."
        dim = shape.head_dims[i]
        x = norm(h, w[p + "input_layernorm.weight"])
        cos, sin = rope[kind]
        q = F.linear(x, w[p + "self_attn.q_proj.weight"]).view(batch, length, shape.heads, dim).transpose(1, 2)
        q = rotate(norm(q, w[p + "self_attn.q_norm.weight"]), cos, sin)
        if i < shape.own_layers:
            k = F.linear(x, w[p + "self_attn.k_proj.weight"]).view(batch, length, 1, dim).transpose(1, 2)
            v = F.linear(x, w[p + "self_attn.v_proj.weight"]).view(batch, length, 1, dim).transpose(1, 2)
            store[i] = rotate(norm(k, w[p + "self_attn.k_norm.weight"]), cos, sin), norm(v)
        k, v = store[shape.kv_source(i)]
        a = _attend(shape, kind, q, k, v).transpose(1, 2).reshape(batch, length, -1)
        h = h + norm(F.linear(a, w[p + "self_attn.o_proj.weight"]), w[p + "post_attention_layernorm.weight"])
        x = norm(h, w[p + "pre_feedforward_layernorm.weight"])
        gate = F.gelu(F.linear(x, w[p + "mlp.gate_proj.weight"]), approximate="tanh")
        x = F.linear(gate * F.linear(x, w[p + "mlp.up_proj.weight"]), w[p + "mlp.down_proj.weight"])
        h = h + norm(x, w[p + "post_feedforward_layernorm.weight"])
        gate = F.gelu(F.linear(h, w[p + "per_layer_input_gate.weight"]), approximate="tanh") * ple[:, :, i]
        x = F.linear(gate, w[p + "per_layer_projection.weight"])
        h = (h + norm(x, w[p + "post_per_layer_input_norm.weight"])) * w[p + "layer_scalar"]
    last = {shape.layer_types[i]: store[i] for i in range(shape.own_layers)} if keep_kv else {}
    return norm(h, w[TEXT + "norm.weight"]), last


def logits(w: Weights, shape: Shape, hidden: torch.Tensor) -> torch.Tensor:
    """Softcapped fp32 logits of any leading shape."""
    x = F.linear(hidden, w[TEXT + "embed_tokens.weight"]).float()
    return torch.tanh(x / shape.softcap) * shape.softcap


# Called with (name, input, output) of each clipped linear when set: used to measure their ranges.
observe: Callable[[str, torch.Tensor, torch.Tensor], None] | None = None


def clipped(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Gemma4ClippableLinear; bounds that are absent from `w` are infinite."""
    if name + ".input_min" in w:
        x = torch.clamp(x, w[name + ".input_min"], w[name + ".input_max"])
    y = F.linear(x, w[name + ".linear.weight"])
    if observe is not None:
        observe(name, x, y)
    if name + ".output_min" in w:
        y = torch.clamp(y, w[name + ".output_min"], w[name + ".output_max"])
    return y


def vision_forward(w: Weights, shape: Shape, pixels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Patch features before pooling.

    Args:
        w: The weights.
        shape: Dimensions.
        pixels: [B, P, 768] in 0..1.
        positions: [B, P, 2] as (x, y), -1 where a patch is padding.

    Returns:
        [B, P, C].
    """
    cfg = shape.vision
    heads, dim = cfg["num_attention_heads"], cfg["head_dim"]
    batch, count, _ = pixels.shape
    valid = positions[..., 0] >= 0
    at = positions.clamp(min=0)
    table = w[VISION + "patch_embedder.position_embedding_table"]
    h = F.linear(2 * (pixels - 0.5), w[VISION + "patch_embedder.input_proj.weight"])
    h = h + (F.embedding(at[..., 0], table[0]) + F.embedding(at[..., 1], table[1])) * valid[..., None]
    steps = torch.arange(0, dim // 2, 2, device=h.device, dtype=torch.float32)
    inverse = torch.exp(steps * (-math.log(100.0) / (dim // 2)))
    angles = at[..., None].float() * inverse
    angles = torch.cat((angles, angles), -1)
    cos, sin = angles.cos().to(h.dtype)[:, None], angles.sin().to(h.dtype)[:, None]

    def rotate_axes(x: torch.Tensor) -> torch.Tensor:
        parts = x.chunk(2, -1)
        return torch.cat([rotate(part, cos[..., k, :], sin[..., k, :]) for k, part in enumerate(parts)], -1)

    mask = valid[:, None, None, :]
    for i in range(cfg["num_hidden_layers"]):
        p = f"{VISION}encoder.layers.{i}."
        x = norm(h, w[p + "input_layernorm.weight"])
        q, k, v = (
            clipped(w, f"{p}self_attn.{name}_proj", x).view(batch, count, heads, dim).transpose(1, 2) for name in "qkv"
        )
        q = rotate_axes(norm(q, w[p + "self_attn.q_norm.weight"]))
        k = rotate_axes(norm(k, w[p + "self_attn.k_norm.weight"]))
        a = F.scaled_dot_product_attention(q, k, norm(v), attn_mask=mask, scale=1.0)
        a = clipped(w, p + "self_attn.o_proj", a.transpose(1, 2).reshape(batch, count, -1))
        h = h + norm(a, w[p + "post_attention_layernorm.weight"])
        x = norm(h, w[p + "pre_feedforward_layernorm.weight"])
        gate = F.gelu(clipped(w, p + "mlp.gate_proj", x), approximate="tanh")
        x = clipped(w, p + "mlp.down_proj", gate * clipped(w, p + "mlp.up_proj", x))
        h = h + norm(x, w[p + "post_feedforward_layernorm.weight"])
    return h


def pool(features: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Averages each soft token's 3x3 patches.

    Args:
        features: [B, P, C].
        cells: [B, S, 9] patch indices of each soft token.

    Returns:
        [B, S, C], scaled by sqrt(C).
    """
    batch, soft, nine = cells.shape
    channels = features.shape[-1]
    index = cells.reshape(batch, -1, 1).expand(-1, -1, channels)
    return features.gather(1, index).view(batch, soft, nine, channels).mean(2) * channels**0.5


def project(w: Weights, kind: str, features: torch.Tensor) -> torch.Tensor:
    """Tower features into the decoder's space; `kind` is "vision" or "audio"."""
    return F.linear(norm(features), w[f"model.embed_{kind}.embedding_projection.weight"])


def _feed_forward(w: Weights, p: str, x: torch.Tensor) -> torch.Tensor:
    y = clipped(w, p + "ffw_layer_1", norm(x, w[p + "pre_layer_norm.weight"]))
    y = clipped(w, p + "ffw_layer_2", F.silu(y))
    return x + 0.5 * norm(y, w[p + "post_layer_norm.weight"])


def _audio_attention(w: Weights, p: str, cfg: dict[str, Any], x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    batch, length, hidden = x.shape
    heads, chunk, past = cfg["num_attention_heads"], cfg["attention_chunk_size"], cfg["attention_context_left"] - 1
    dim, context = hidden // heads, chunk + past
    blocks = -(-length // chunk)
    tail = blocks * chunk - length

    def view(name: str) -> torch.Tensor:
        return clipped(w, p + name, x).view(batch, length, heads, dim)

    q = view("q_proj") * (dim**-0.5 / math.log(2) * F.softplus(w[p + "per_dim_scale"]))
    k = view("k_proj") * (math.log(1 + math.e) / math.log(2))
    q = F.pad(q, (0, 0, 0, 0, 0, tail)).view(batch, blocks, chunk, heads, dim).permute(0, 3, 1, 2, 4)

    def windows(y: torch.Tensor) -> torch.Tensor:
        y = F.pad(y, (0, 0, 0, 0, past, tail))
        return y.unfold(1, context, chunk).permute(0, 2, 1, 4, 3)  # [B, heads, blocks, context, dim]

    k, v = windows(k), windows(view("v_proj"))
    steps = torch.arange(context // 2, -1, -1, device=x.device)[:, None]
    scales = torch.exp(torch.arange(hidden // 2, device=x.device) * -(math.log(1e4) / max(hidden // 2 - 1, 1)))
    angles = steps * scales
    relative = F.linear(torch.cat((angles.sin(), angles.cos()), -1).to(x.dtype), w[p + "relative_k_proj.weight"])
    relative = relative.view(-1, heads, dim).permute(1, 2, 0)
    by_position = q.reshape(batch, heads, -1, dim) @ relative
    count = by_position.shape[-1]
    by_position = F.pad(by_position.view(batch, heads, blocks, chunk, count), (0, context + 1 - count))
    by_position = by_position.reshape(batch, heads, blocks, -1)[..., : chunk * context]
    scores = (q @ k.transpose(-1, -2) + by_position.view(batch, heads, blocks, chunk, context)).float()
    scores = 50 * torch.tanh(scores / 50)
    at_query = torch.arange(chunk, device=x.device)[:, None]
    at_key = torch.arange(context, device=x.device)[None] - past
    near = (at_key <= at_query) & (at_query - at_key < past)
    keys = F.pad(valid, (past, tail)).unfold(1, context, chunk)  # [B, blocks, context]
    mask = near[None, None, None] & keys[:, None, :, None, :]
    weights = scores.masked_fill(~mask, -1e9).softmax(-1).to(x.dtype)
    out = (weights @ v).permute(0, 2, 3, 1, 4).reshape(batch, blocks * chunk, hidden)[:, :length]
    return clipped(w, p + "post", out)


def audio_forward(
    w: Weights, shape: Shape, features: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The conformer tower.

    Args:
        w: The weights.
        shape: Dimensions.
        features: log-mel [B, T, 128].
        mask: bool [B, T], True where a frame is real.

    Returns:
        [B, T/4, output_proj_dims] and its mask [B, T/4].
    """
    cfg = shape.audio
    p = AUDIO + "subsample_conv_projection."
    h = features[:, None].to(w[p + "layer0.conv.weight"].dtype)
    for layer in ("layer0.", "layer1."):
        h = F.conv2d(h * mask[:, None, :, None], w[p + layer + "conv.weight"], stride=2, padding=1)
        weight = w[p + layer + "norm.weight"]
        h = F.relu(F.layer_norm(h.permute(0, 2, 3, 1), weight.shape, weight, None, EPS)).permute(0, 3, 1, 2)
        mask = mask[:, ::2]
    batch, _, length, _ = h.shape
    h = F.linear(h.permute(0, 2, 3, 1).reshape(batch, length, -1), w[p + "input_proj_linear.weight"])
    for i in range(cfg["num_hidden_layers"]):
        p = f"{AUDIO}layers.{i}."
        h = _feed_forward(w, p + "feed_forward1.", h)
        x = _audio_attention(w, p + "self_attn.", cfg, norm(h, w[p + "norm_pre_attn.weight"]), mask)
        h = h + norm(x, w[p + "norm_post_attn.weight"])
        c = p + "lconv1d."
        x = F.glu(clipped(w, c + "linear_start", norm(h, w[c + "pre_layer_norm.weight"])), dim=-1)
        kernel = w[c + "depthwise_conv1d.weight"]
        x = F.pad(x.transpose(1, 2), (kernel.shape[-1] - 1, 0))
        x = F.conv1d(x, kernel, groups=kernel.shape[0]).transpose(1, 2)
        h = h + clipped(w, c + "linear_end", F.silu(norm(x, w[c + "conv_norm.weight"])))
        h = norm(_feed_forward(w, p + "feed_forward2.", h), w[p + "norm_out.weight"])
    return F.linear(h, w[AUDIO + "output_proj.weight"], w[AUDIO + "output_proj.bias"]), mask


def initial_weights(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> Weights:
    """Weights to start training from.

    Gemma 4 attends with scale 1.0, so q_norm starts at head_dim**-0.5; residual branches start small.
    """
    out: Weights = {}
    for name, dims in shapes.items():
        if name.endswith("layer_scalar"):
            layer = int(name.split("layers.")[1].split(".")[0])
            out[name] = torch.full(dims, LAYER_SCALARS[layer % len(LAYER_SCALARS)])
        elif name.endswith("q_norm.weight"):
            out[name] = torch.full(dims, dims[0] ** -0.5)
        elif name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            out[name] = torch.full(dims, 0.5)
        elif name.endswith("post_per_layer_input_norm.weight"):
            out[name] = torch.full(dims, 0.3)
        elif name.endswith(("per_dim_scale", "bias")):
            out[name] = torch.zeros(dims)
        elif len(dims) < 2:
            out[name] = torch.ones(dims)
        else:
            fan_in = math.prod(dims[1:])
            std = 0.04 if name.endswith("embed_tokens.weight") else 0.02 if "embed" in name else min(0.08, fan_in**-0.5)
            if "embedding_projection" in name or "input_proj" in name:
                std = min(0.08, fan_in**-0.5)
            out[name] = torch.randn(dims, generator=generator) * std
    return out
