"""Random models of transformers to compare with; imported by oracle tests only."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4AudioConfig,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4VisionConfig,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

torch.set_num_threads(1)

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
IMAGE = 120  # the id of an image's soft tokens

_modes = Gemma4TextConfig.kv_sharing_modes.fget


def _kv_sharing_modes(config: Any) -> list[str | None]:
    """transformers 5.23 refuses a decoder that owns no keys at all, which is what its own drafter class builds."""
    if config.num_kv_shared_layers == config.num_hidden_layers:
        return ["reuse"] * config.num_hidden_layers
    modes: list[str | None] = _modes(config)
    return modes


Gemma4TextConfig.kv_sharing_modes = property(_kv_sharing_modes)


def text_config(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 9,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 32,
        "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 3,
        "sliding_window": 8,
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 128,
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "max_position_embeddings": 512,
        **changes,
    }


def randomize(model: torch.nn.Module, seed: int, *, bound: float = math.inf) -> None:
    """Weights at which every term of the architecture matters; `bound` clips the towers' linear layers."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_((0.3 if "q_norm" in name else 1.0) * (1 + 0.2 * torch.randn_like(weight)))
            elif "embed" in name:
                weight.copy_(0.3 * torch.randn_like(weight))
            elif "router" in name:
                weight.copy_(torch.randn_like(weight))  # what it multiplies has length 1
            elif ".experts." in name:
                weight.copy_(torch.randn_like(weight) / weight.shape[-1] ** 0.5)
            else:
                weight.copy_(torch.randn_like(weight) / weight[0].numel() ** 0.5)
        for name, buffer in model.named_buffers():
            if "layer_scalar" in name or "std_scale" in name:
                buffer.copy_(0.5 + torch.rand_like(buffer))
            elif "std_bias" in name:
                buffer.copy_(torch.randn_like(buffer))
            elif name.endswith(("_min", "_max")) and math.isfinite(bound):
                sign = -1 if name.endswith("_min") else 1
                buffer.copy_(sign * bound * (0.7 + 0.6 * torch.rand_like(buffer)))


def text_model(folder: Path, seed: int = 0, *, layer_scalars: Sequence[float] = (), **changes: Any) -> Any:
    """Eager float32; `layer_scalars` go round the layers."""
    config = Gemma4TextConfig(**text_config(**changes), **EAGER)
    model = Gemma4ForCausalLM(config).eval()
    randomize(model, seed)
    for layer, scalar in zip(model.model.layers, itertools.cycle(layer_scalars), strict=False):
        layer.layer_scalar.fill_(scalar)
    model.save_pretrained(folder)
    return model


def whole_model(
    folder: Path,
    vision: dict[str, Any],
    audio: dict[str, Any] | None,
    bound: float = math.inf,
    seed: int = 0,
    **changes: Any,
) -> Any:
    """A decoder, changed, with an image tower and, unless None, one for sound."""
    config = Gemma4Config(
        text_config=text_config(**changes),
        vision_config=Gemma4VisionConfig(**vision).to_dict(),
        audio_config=None if audio is None else Gemma4AudioConfig(**audio).to_dict(),
        **EAGER,
        image_token_id=IMAGE,
        audio_token_id=121,
        video_token_id=122,
        boi_token_id=123,
        eoi_token_id=124,
        boa_token_id=125,
        eoa_token_index=126,
    )
    model = Gemma4ForConditionalGeneration(config).eval()
    randomize(model, seed, bound=bound)
    model.save_pretrained(folder)
    return model


MOBILE_BITS = {
    r"^lm_head$": 2,
    r"language_model\.embed_tokens$": 2,
    r"language_model\.embed_tokens_per_layer$": 4,
    r"layers\.[0-5]\.mlp\.": 4,
    r"layers\.\d+\.mlp\.": 2,
    r"per_layer_": 8,
    r"(vision|audio)_tower": 8,
}
"""As in the vendor's mobile checkpoint of E2B, whose later layers have wide MLPs of two bits."""


def mobile_model(
    folder: Path, vision: dict[str, Any], audio: dict[str, Any], seed: int = 0, *, step: float = 0.05, **changes: Any
) -> Any:
    """Of 2, 4 and 8 bits with activations rounded to multiples of about `step`, as checkpoints for phones have it."""
    from transformers import GemmaQuantizationConfig
    from transformers.integrations.gemma_quant import QuantizedEmbedding, QuantizedLinear, replace_with_quant_layers

    quantized = GemmaQuantizationConfig(
        num_bits=4,
        quantize_embeddings=True,
        module_quant_configs={pattern: {"num_bits": bits} for pattern, bits in MOBILE_BITS.items()},
        modules_to_not_convert=["per_layer_model_projection", "embed_vision", "embed_audio", "patch_embedder"],
    )
    config = Gemma4Config(
        text_config=text_config(**changes, tie_word_embeddings=False),
        vision_config=Gemma4VisionConfig(**vision).to_dict(),
        audio_config=Gemma4AudioConfig(**audio).to_dict(),
        image_token_id=IMAGE,
        audio_token_id=121,
        tie_word_embeddings=False,
        **EAGER,
    )
    model = Gemma4ForConditionalGeneration(config).eval()
    randomize(model, seed)
    replace_with_quant_layers(model, quantized, quantized.modules_to_not_convert)
    for module in model.modules():
        if not isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
            continue
        table = isinstance(module, QuantizedEmbedding)
        codes, scale = (module.embedding_quantized, "embedding_scale") if table else (module.weight, "weight_scale")
        codes.random_(-127, 128) if module.num_bits == 8 else codes.random_(0, 256)
        width = module.embedding_dim if table else module.in_features
        groups = len(config.text_config.layer_types) if table and width > config.text_config.hidden_size else 1
        size = 0.5 if table else 1.5 / width**0.5
        steps = size * (0.5 + torch.rand(codes.shape[0], groups)) / 2 ** (module.num_bits - 1)
        setattr(module, scale, torch.nn.Parameter(steps, requires_grad=False))
        if not table:
            module.input_activation_scale.fill_(step * (0.5 + float(torch.rand(()))))
            module.output_activation_scale.fill_(step * (0.5 + float(torch.rand(()))))
    embedding = model.model.language_model.embed_tokens
    model.lm_head.weight.copy_(embedding.embedding_quantized)
    model.lm_head.weight_scale.copy_(embedding.embedding_scale)
    model.config.quantization_config = quantized
    model.save_pretrained(folder)
    return model


def drafter_model(
    folder: Path, seed: int = 0, *, ordered: bool, centroids: int = 16, top_k: int = 4, **changes: Any
) -> Any:
    """A drafter of a model whose hidden size is 64."""
    defaults: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "use_double_wide_mlp": False,
        "final_logit_softcapping": None,
    }
    values = text_config(**defaults | changes)
    values["num_kv_shared_layers"] = values["num_hidden_layers"]
    config = Gemma4AssistantConfig(
        text_config=values,
        backbone_hidden_size=64,
        use_ordered_embeddings=ordered,
        num_centroids=centroids,
        centroid_intermediate_top_k=top_k,
    )
    model = Gemma4AssistantForCausalLM(config).eval()
    randomize(model, seed)
    if ordered:
        model.masked_embedding.token_ordering.copy_(torch.randperm(values["vocab_size"]))
    model.save_pretrained(folder)
    return model
