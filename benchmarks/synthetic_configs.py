"""config.json of the Gemma 4 models as published, and the older and newer ways to write their geometry.

The values are those that several public configurations agree on; no weights are needed to know them.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
MODELS = ("e2b", "e4b", "26b-a4b", "31b")
LAYOUTS = ("old", "new")

# transformers >= 5.15 writes these into per_layer_config instead.
_OLD_KEYS = ("global_head_dim", "num_global_key_value_heads")

_TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "dtype": "bfloat16",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "model_type": "gemma4_text",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 262144,
}
_DENSE = {
    "enable_moe_block": False,
    "moe_intermediate_size": None,
    "num_experts": None,
    "top_k_experts": None,
}
# The E models: per-layer embeddings, layers that share keys and values, images seen causally.
_E_SERIES = _DENSE | {
    "attention_k_eq_v": False,
    "hidden_size_per_layer_input": 256,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_global_key_value_heads": None,
    "sliding_window": 512,
    "use_bidirectional_attention": None,
    "vocab_size_per_layer_input": 262144,
}
# The larger ones: values of full layers are their keys, image tokens of sliding layers see each other.
_LARGE = {
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262144,
    "num_kv_shared_layers": 0,
    "sliding_window": 1024,
    "use_bidirectional_attention": "vision",
    "use_double_wide_mlp": False,
    "vocab_size_per_layer_input": 262144,
}
# What differs from model to model, and how many sliding layers stand before each full one.
_TEXTS: dict[str, tuple[int, dict[str, Any]]] = {
    "e2b": (
        4,
        _E_SERIES
        | {
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "num_hidden_layers": 35,
            "num_key_value_heads": 1,
            "num_kv_shared_layers": 20,
            "use_double_wide_mlp": True,
        },
    ),
    "e4b": (
        5,
        _E_SERIES
        | {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 42,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": 18,
            "use_double_wide_mlp": False,
        },
    ),
    "26b-a4b": (
        5,
        _LARGE
        | {
            "enable_moe_block": True,
            "hidden_size": 2816,
            "intermediate_size": 2112,
            "moe_intermediate_size": 704,
            "num_attention_heads": 16,
            "num_experts": 128,
            "num_global_key_value_heads": 2,
            "num_hidden_layers": 30,
            "num_key_value_heads": 8,
            "top_k_experts": 8,
        },
    ),
    "31b": (
        5,
        _DENSE
        | _LARGE
        | {
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_attention_heads": 32,
            "num_global_key_value_heads": 4,
            "num_hidden_layers": 60,
            "num_key_value_heads": 16,
        },
    ),
}
_VISION: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "model_type": "gemma4_vision",
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "position_embedding_size": 10240,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
}
_SMALL_VISION = _VISION | {
    "head_dim": 64,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 16,
    "num_key_value_heads": 12,
    "standardize": False,
    "use_clipped_linears": True,
}
_LARGE_VISION = _VISION | {
    "head_dim": 72,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "standardize": True,
    "use_clipped_linears": False,
}
_AUDIO: dict[str, Any] = {
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_invalid_logits_value": -1000000000.0,
    "attention_logit_cap": 50.0,
    "conv_kernel_size": 5,
    "dtype": "bfloat16",
    "gradient_clipping": 10000000000.0,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "model_type": "gemma4_audio",
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "output_proj_dims": 1536,
    "residual_weight": 0.5,
    "rms_norm_eps": 1e-06,
    "subsampling_conv_channels": [128, 32],
    "use_clipped_linears": True,
}


def config(model: str, *, layers: int | None = None, layout: str = "old") -> dict[str, Any]:
    """The config.json of one of `MODELS`.

    Args:
        model: One of `MODELS`.
        layers: Keep the first so many layers only; of those that share keys and values, as many stay as fit, and
            the last layer becomes a full one, as transformers forces it to be.
        layout: "old", the published keys `global_head_dim` and `num_global_key_value_heads`, or "new", the
            `per_layer_config` that transformers >= 5.15 writes.
    """
    period, changes = _TEXTS[model]
    text = deepcopy(_TEXT | changes)
    count = text["num_hidden_layers"]
    text["layer_types"] = [FULL if i % (period + 1) == period else SLIDING for i in range(count)]
    if layers is not None and layers < count:
        _shorten(text, layers)
    sees = _SMALL_VISION if model.startswith("e") else _LARGE_VISION
    result: dict[str, Any] = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": deepcopy(_AUDIO) if model.startswith("e") else None,
        "audio_token_id": 258881,
        "boa_token_id": 256000,
        "boi_token_id": 255999,
        "dtype": "bfloat16",
        "eoa_token_id": 258883,
        "eoa_token_index": 258883,
        "eoi_token_id": 258882,
        "eos_token_id": [1, 106],
        "image_token_id": 258880,
        "initializer_range": 0.02,
        "model_type": "gemma4",
        "text_config": _arranged(text, layout),
        "tie_word_embeddings": True,
        "transformers_version": "5.5.0.dev0",
        "video_token_id": 258884,
        "vision_config": deepcopy(sees),
        "vision_soft_tokens_per_image": 280,
    }
    return result


def assistant_config(model: str, *, layout: str = "old") -> dict[str, Any]:
    """The config.json of the drafter of "e2b" or "e4b": four layers that read the target's keys and values."""
    target = _TEXTS[model][1]
    text = deepcopy(_TEXT | _E_SERIES) | {
        "final_logit_softcapping": None,
        "hidden_size": 256,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2048,
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": target["num_key_value_heads"],
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": False,
        "vocab_size_per_layer_input": 0,
    }
    return {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "backbone_hidden_size": target["hidden_size"],
        "centroid_intermediate_top_k": 32,
        "dtype": "bfloat16",
        "model_type": "gemma4_assistant",
        "num_centroids": 2048,
        "text_config": _arranged(text, layout),
        "tie_word_embeddings": True,
        "transformers_version": "5.5.0.dev0",
        "use_ordered_embeddings": True,
    }


def _shorten(text: dict[str, Any], layers: int) -> None:
    own = text["num_hidden_layers"] - text["num_kv_shared_layers"]
    types = text["layer_types"][:layers]
    types[-1] = FULL
    if text["num_kv_shared_layers"]:
        # Half of them share, as in the whole models, but both kinds must keep keys before the first that does.
        own = min(own, max((layers + 1) // 2, types.index(FULL) + 1))
        text["num_kv_shared_layers"] = layers - own
    text["num_hidden_layers"] = layers
    text["layer_types"] = types


def _arranged(text: dict[str, Any], layout: str) -> dict[str, Any]:
    if layout == "old":
        return text
    head_dim, kv_heads = (text.pop(key) for key in _OLD_KEYS)
    override = {"head_dim": head_dim}
    if text["attention_k_eq_v"]:
        override["num_key_value_heads"] = kv_heads
    full = [i for i, layer_type in enumerate(text["layer_types"]) if layer_type == FULL]
    digits = len(str(full[-1]))  # padded, as transformers writes them
    text["per_layer_config"] = {str(i).zfill(digits): dict(override) for i in full}
    return text
