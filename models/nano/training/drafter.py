"""The multi-token-prediction drafter, trained on the frozen model's hidden states and keys."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

try:
    from . import model, step
except ImportError:  # run from inside the folder, as on a machine without the repository
    import model  # type: ignore[import-not-found, no-redef]
    import step  # type: ignore[import-not-found, no-redef]

UNROLL = 3


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the drafter's weights."""
    text, wide = config["text_config"], config["backbone_hidden_size"]
    hidden, heads, mlp = text["hidden_size"], text["num_attention_heads"], text["intermediate_size"]
    out = {
        "model.embed_tokens.weight": (text["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "pre_projection.weight": (hidden, 2 * wide),
        "post_projection.weight": (wide, hidden),
        "masked_embedding.centroids.weight": (config["num_centroids"], hidden),
    }
    for i in range(text["num_hidden_layers"]):
        p = f"model.layers.{i}."
        dim = text["per_layer_config"].get(str(i), {}).get("head_dim", text["head_dim"])
        out |= {p + f"{name}.weight": (hidden,) for name in _NORMS}
        out |= {
            p + "layer_scalar": (1,),
            p + "self_attn.q_norm.weight": (dim,),
            p + "self_attn.q_proj.weight": (heads * dim, hidden),
            p + "self_attn.o_proj.weight": (hidden, heads * dim),
            p + "mlp.gate_proj.weight": (mlp, hidden),
            p + "mlp.up_proj.weight": (mlp, hidden),
            p + "mlp.down_proj.weight": (hidden, mlp),
        }
    return out


_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _initial(config: dict[str, Any], seed: int) -> model.Weights:
    generator = torch.Generator().manual_seed(seed)
    out: model.Weights = {}
    for name, dims in shapes(config).items():
        if name.endswith("q_norm.weight"):
            out[name] = torch.full(dims, dims[0] ** -0.5)
        elif len(dims) == 1:
            out[name] = torch.ones(dims)
        else:
            out[name] = torch.randn(dims, generator=generator) * min(0.08, dims[1] ** -0.5)
    return out


def token_order(counts: torch.Tensor, centroids: int) -> torch.Tensor:
    """Tokens by falling frequency: each cluster holds tokens about as frequent as one another."""
    assert len(counts) % centroids == 0
    return torch.argsort(counts, descending=True, stable=True)


def forward(
    w: model.Weights,
    config: dict[str, Any],
    shape: model.Shape,
    pairs: torch.Tensor,
    position: torch.Tensor,
    kv: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One draft step for many positions at once.

    Args:
        w: The drafter's weights.
        config: Its config.json.
        shape: The target's dimensions.
        pairs: [B, A, 2H], embedding of the last token beside the hidden state that chose it.
        position: [B, A], the last token's position; keys before it are visible.
        kv: The target's keys and values by layer type, [B, 1, L, D].

    Returns:
        Dense logits [B, A, V], centroid scores [B, A, C], the hidden state of the next step [B, A, H].
    """
    text = config["text_config"]
    heads = text["num_attention_heads"]
    h = F.linear(pairs, w["pre_projection.weight"])
    batch, count, _ = h.shape
    for i, kind in enumerate(text["layer_types"]):
        p = f"model.layers.{i}."
        keys, values = kv[kind]
        length, dim = keys.shape[2], keys.shape[3]
        cos, sin = model.text_rope(shape, length + 1, h.device, h.dtype)[kind]
        x = model.norm(h, w[p + "input_layernorm.weight"])
        q = F.linear(x, w[p + "self_attn.q_proj.weight"]).view(batch, count, heads, dim)
        q = model.norm(q, w[p + "self_attn.q_norm.weight"])
        q = model.rotate(q, cos[position][:, :, None], sin[position][:, :, None]).transpose(1, 2)
        distance = position[:, :, None] - torch.arange(length, device=h.device)
        mask = distance > 0
        if kind == "sliding_attention":
            mask = mask & (distance <= shape.window)
        mask = mask | (distance == distance.amin(-1, keepdim=True)) & ~mask.any(-1, keepdim=True)
        a = F.scaled_dot_product_attention(
            q, keys.expand(-1, heads, -1, -1), values.expand(-1, heads, -1, -1), attn_mask=mask[:, None], scale=1.0
        )
        a = F.linear(a.transpose(1, 2).reshape(batch, count, -1), w[p + "self_attn.o_proj.weight"])
        h = h + model.norm(a, w[p + "post_attention_layernorm.weight"])
        x = model.norm(h, w[p + "pre_feedforward_layernorm.weight"])
        gate = F.gelu(F.linear(x, w[p + "mlp.gate_proj.weight"]), approximate="tanh")
        x = F.linear(gate * F.linear(x, w[p + "mlp.up_proj.weight"]), w[p + "mlp.down_proj.weight"])
        h = (h + model.norm(x, w[p + "post_feedforward_layernorm.weight"])) * w[p + "layer_scalar"]
    h = model.norm(h, w["model.norm.weight"])
    dense = F.linear(h, w["model.embed_tokens.weight"]).float()
    centroids = F.linear(h, w["masked_embedding.centroids.weight"]).float()
    return dense, centroids, F.linear(h, w["post_projection.weight"])


def _losses(
    w: model.Weights, trainer: Any, config: dict[str, Any], result: step.RowResult, rows: step.Tensors, name: str,
    cluster: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Loss over UNROLL draft steps, and the share of right first drafts."""
    target, weight, at = rows[f"{name}.target"], rows[f"{name}.weight"], rows[f"{name}.at"]
    hidden = result.hidden
    total = torch.zeros((), device=hidden.device)
    right = total
    position = at + 1
    per_cluster = config["num_centroids"]
    for k in range(UNROLL):
        embedded = model.embed(trainer.target, trainer.shape, torch.roll(target, -k, 1)).float()
        pairs = torch.cat((embedded, hidden.float()), -1)
        dense, centroids, hidden = forward(w, config, trainer.shape, pairs, position, result.kv)
        wanted = torch.roll(target, -k - 1, 1)
        # A draft counts where the row still has that many answer tokens left.
        ahead = F.pad(weight[:, k + 1 :], (0, k + 1))
        count = ahead.sum().clamp(min=1)
        loss = F.cross_entropy(dense.flatten(0, 1), wanted.flatten(), reduction="none").view_as(ahead)
        choice = F.cross_entropy(centroids.flatten(0, 1), cluster[wanted].flatten(), reduction="none").view_as(ahead)
        total = total + ((loss + choice) * ahead).sum() / count / (k + 1)
        if k == 0:
            allowed = centroids.topk(config["centroid_intermediate_top_k"], -1).indices
            member = torch.zeros(*centroids.shape[:2], per_cluster, dtype=torch.bool, device=dense.device)
            member = member.scatter(-1, allowed, value=True)
            masked = dense.masked_fill(~member[..., cluster], -1e9)
            right = ((masked.argmax(-1) == wanted) * ahead).sum() / count
    return total, right


def train(trainer: Any, stream: Iterator[dict[str, torch.Tensor]], budget: float) -> None:
    """Trains the drafter for `budget` seconds against the trainer's averaged weights and saves it."""
    device = trainer.device
    config = json.loads((trainer.options.base / "drafter" / "config.json").read_text())
    trainer.target = {name: value.float() for name, value in (trainer.optimizer.averaged() | trainer.fixed).items()}
    w = {name: value.to(device) for name, value in _initial(config, trainer.options.seed).items()}
    trained = {name: value.requires_grad_() for name, value in w.items() if not name.endswith("layer_scalar")}
    optimizer = torch.optim.AdamW(trained.values(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    counts = torch.zeros(trainer.shape.vocab)
    for _ in range(3):
        batch = next(stream)
        for name in ("short", "long", "text", "long_text", "typed"):
            counts += torch.bincount(
                batch[f"{name}.target"].flatten(), batch[f"{name}.weight"].flatten(), trainer.shape.vocab
            )
    order = token_order(counts, config["num_centroids"]).to(device)
    cluster = torch.empty_like(order)
    size = len(order) // config["num_centroids"]
    cluster[order] = torch.arange(len(order), device=device) // size
    start, count = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / budget) < 1 and count < trainer.options.steps:
        batch = {name: value.to(device) for name, value in next(stream).items()}
        with torch.no_grad():
            mel, mask = step.clip_features(trainer.speech.samples, batch, "clips", int(batch["frames"]), augment=True)
            spoken, _ = step.speech_losses(trainer.target, trainer.shape, mel, mask, batch, keep_kv=True)
            typed = [
                step.run_rows(trainer.target, trainer.shape, batch, name, keep_kv=True)
                for name in ("text", "long_text")
            ]
        loss = torch.zeros((), device=device)
        rights = []
        for name, result in zip(("short", "long", "text", "long_text"), [*spoken, *typed], strict=True):
            part, right = _losses(w, trainer, config, result, batch, name, cluster)
            loss = loss + part
            rights.append(right)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (count + 1) / 50) * (0.5 * (1 + math.cos(math.pi * progress)) + 0.02)
        optimizer.step()
        count += 1
        if count % 50 == 1:
            shares = [round(float(right), 3) for right in rights]
            trainer.log(f"drafter step {count} loss {float(loss.detach()):.3f} first draft right {shares}")
    save(w, order, trainer.options.out / "drafter")


def save(w: model.Weights, order: torch.Tensor, out: Path) -> None:
    """Writes the drafter as transformers' Gemma4AssistantForCausalLM stores it."""
    out.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().to(torch.bfloat16).cpu().contiguous() for name, value in w.items()}
    stored["masked_embedding.token_ordering"] = torch.from_numpy(order.cpu().numpy().astype(np.int64))
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
