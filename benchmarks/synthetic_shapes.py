"""Names and shapes of the tensors that a Gemma 4 checkpoint holds, from its config.json.

Written from the model's description and not with edge_runtime's own reading of it, so that an export of the result
checks that reading. Names are those of the published checkpoints (Gemma4ForConditionalGeneration and, for the drafter,
Gemma4AssistantForCausalLM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

FULL = "full_attention"
Shapes = dict[str, tuple[int, ...]]

_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
_MOE_NORMS = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
_BOUNDS = ("input_min", "input_max", "output_min", "output_max")


def shapes(config: Mapping[str, Any]) -> Shapes:
    """Of every tensor; () is a scalar. Only `token_ordering` of a drafter is int64, all else is floating point."""
    if config["model_type"] == "gemma4_assistant":
        return _assistant(config)
    text = config["text_config"]
    found = _decoder(text, "model.language_model.", unused_kv=True)
    if vision := config.get("vision_config"):
        found |= _vision(vision)
        found["model.embed_vision.embedding_projection.weight"] = (text["hidden_size"], vision["hidden_size"])
    if audio := config.get("audio_config"):
        found |= _audio(audio)
        found["model.embed_audio.embedding_projection.weight"] = (text["hidden_size"], audio["output_proj_dims"])
    return found


def unused(config: Mapping[str, Any]) -> set[str]:
    """Tensors that checkpoints hold though no model reads them: keys and values of layers that share others'."""
    if config["model_type"] == "gemma4_assistant":
        return set()
    text = config["text_config"]
    names = ("k_proj", "v_proj", "k_norm")
    layers = range(text["num_hidden_layers"] - text["num_kv_shared_layers"], text["num_hidden_layers"])
    return {f"model.language_model.layers.{i}.self_attn.{name}.weight" for i in layers for name in names}


def _decoder(text: Mapping[str, Any], prefix: str, *, unused_kv: bool) -> Shapes:
    hidden, ple, vocab = text["hidden_size"], text["hidden_size_per_layer_input"], text["vocab_size"]
    layers = text["num_hidden_layers"]
    found: Shapes = {"embed_tokens.weight": (vocab, hidden), "norm.weight": (hidden,)}
    if ple:
        found["embed_tokens_per_layer.weight"] = (text["vocab_size_per_layer_input"], layers * ple)
        found["per_layer_model_projection.weight"] = (layers * ple, hidden)
        found["per_layer_projection_norm.weight"] = (ple,)
    for i in range(layers):
        shared = i >= layers - text["num_kv_shared_layers"]
        layer = _attention(text, i, own_kv=unused_kv or not shared)
        layer |= _mlp(hidden, text["intermediate_size"] * (2 if shared and text["use_double_wide_mlp"] else 1))
        layer |= {f"{name}.weight": (hidden,) for name in _NORMS}
        layer["layer_scalar"] = (1,)
        if ple:
            layer["per_layer_input_gate.weight"] = (ple, hidden)
            layer["per_layer_projection.weight"] = (hidden, ple)
            layer["post_per_layer_input_norm.weight"] = (hidden,)
        if text["enable_moe_block"]:
            layer |= _experts(text)
        found |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return {prefix + name: shape for name, shape in found.items()}


def _attention(text: Mapping[str, Any], layer: int, *, own_kv: bool) -> Shapes:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    full = text["layer_types"][layer] == FULL
    dim, kv_heads = text["head_dim"], text["num_key_value_heads"]
    if "per_layer_config" in text:
        row: Mapping[str, int] = next((row for i, row in text["per_layer_config"].items() if int(i) == layer), {})
        dim, kv_heads = row.get("head_dim", dim), row.get("num_key_value_heads", kv_heads)
    elif full:
        dim = text["global_head_dim"]
        kv_heads = (text["attention_k_eq_v"] and text["num_global_key_value_heads"]) or kv_heads
    found: Shapes = {
        "q_proj": (heads * dim, hidden),
        "q_norm": (dim,),
        "o_proj": (hidden, heads * dim),
    }
    if own_kv:
        found |= {"k_proj": (kv_heads * dim, hidden), "k_norm": (dim,)}
        if not (full and text["attention_k_eq_v"]):
            found["v_proj"] = (kv_heads * dim, hidden)
    return {f"self_attn.{name}.weight": shape for name, shape in found.items()}


def _mlp(hidden: int, width: int) -> Shapes:
    return {
        "mlp.gate_proj.weight": (width, hidden),
        "mlp.up_proj.weight": (width, hidden),
        "mlp.down_proj.weight": (hidden, width),
    }


def _experts(text: Mapping[str, Any]) -> Shapes:
    hidden, count, width = text["hidden_size"], text["num_experts"], text["moe_intermediate_size"]
    return {
        "router.proj.weight": (count, hidden),
        "router.scale": (hidden,),
        "router.per_expert_scale": (count,),
        "experts.gate_up_proj": (count, 2 * width, hidden),
        "experts.down_proj": (count, hidden, width),
    } | {f"{name}.weight": (hidden,) for name in _MOE_NORMS}


def _linear(name: str, outputs: int, inputs: int, *, clipped: bool) -> Shapes:
    """A tower's linear layer; a clipped one keeps four bounds beside its weight."""
    return {f"{name}.linear.weight": (outputs, inputs)} | ({f"{name}.{b}": () for b in _BOUNDS} if clipped else {})


def _vision(vision: Mapping[str, Any]) -> Shapes:
    hidden, width = vision["hidden_size"], vision["intermediate_size"]
    dim, clipped = vision["head_dim"], vision["use_clipped_linears"]
    heads, kv_heads = vision["num_attention_heads"] * dim, vision["num_key_value_heads"] * dim
    layer: Shapes = {f"{name}.weight": (hidden,) for name in _NORMS}
    layer |= {"self_attn.q_norm.weight": (dim,), "self_attn.k_norm.weight": (dim,)}
    for name, outputs, inputs in (
        ("self_attn.q_proj", heads, hidden),
        ("self_attn.k_proj", kv_heads, hidden),
        ("self_attn.v_proj", kv_heads, hidden),
        ("self_attn.o_proj", hidden, heads),
        ("mlp.gate_proj", width, hidden),
        ("mlp.up_proj", width, hidden),
        ("mlp.down_proj", hidden, width),
    ):
        layer |= _linear(name, outputs, inputs, clipped=clipped)
    found: Shapes = {
        "patch_embedder.position_embedding_table": (2, vision["position_embedding_size"], hidden),
        "patch_embedder.input_proj.weight": (hidden, 3 * vision["patch_size"] ** 2),
    }
    for i in range(vision["num_hidden_layers"]):
        found |= {f"encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    if vision["standardize"]:
        found |= {"std_bias": (hidden,), "std_scale": (hidden,)}
    return {f"model.vision_tower.{name}": shape for name, shape in found.items()}


def _audio(audio: Mapping[str, Any]) -> Shapes:
    hidden, clipped = audio["hidden_size"], audio["use_clipped_linears"]
    first, second = audio["subsampling_conv_channels"]
    layer: Shapes = {
        f"{name}.weight": (hidden,)
        for name in ("norm_pre_attn", "norm_post_attn", "norm_out", "lconv1d.pre_layer_norm", "lconv1d.conv_norm")
    }
    for feed_forward in ("feed_forward1", "feed_forward2"):
        layer[f"{feed_forward}.pre_layer_norm.weight"] = layer[f"{feed_forward}.post_layer_norm.weight"] = (hidden,)
        layer |= _linear(f"{feed_forward}.ffw_layer_1", 4 * hidden, hidden, clipped=clipped)
        layer |= _linear(f"{feed_forward}.ffw_layer_2", hidden, 4 * hidden, clipped=clipped)
    for name in ("q_proj", "k_proj", "v_proj", "post"):
        layer |= _linear(f"self_attn.{name}", hidden, hidden, clipped=clipped)
    layer["self_attn.relative_k_proj.weight"] = (hidden, hidden)
    layer["self_attn.per_dim_scale"] = (hidden // audio["num_attention_heads"],)
    layer |= _linear("lconv1d.linear_start", 2 * hidden, hidden, clipped=clipped)
    layer |= _linear("lconv1d.linear_end", hidden, hidden, clipped=clipped)
    layer["lconv1d.depthwise_conv1d.weight"] = (hidden, 1, audio["conv_kernel_size"])
    found: Shapes = {
        "subsample_conv_projection.layer0.conv.weight": (first, 1, 3, 3),
        "subsample_conv_projection.layer0.norm.weight": (first,),
        "subsample_conv_projection.layer1.conv.weight": (second, first, 3, 3),
        "subsample_conv_projection.layer1.norm.weight": (second,),
        # Two convolutions of stride 2 leave a quarter of the first one's channels as frequency bins.
        "subsample_conv_projection.input_proj_linear.weight": (hidden, first // 4 * second),
        "output_proj.weight": (audio["output_proj_dims"], hidden),
        "output_proj.bias": (audio["output_proj_dims"],),
    }
    for i in range(audio["num_hidden_layers"]):
        found |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return {f"model.audio_tower.{name}": shape for name, shape in found.items()}


def _assistant(config: Mapping[str, Any]) -> Shapes:
    text, backbone = config["text_config"], config["backbone_hidden_size"]
    hidden = text["hidden_size"]
    found = _decoder(text, "model.", unused_kv=False)
    found |= {"pre_projection.weight": (hidden, 2 * backbone), "post_projection.weight": (backbone, hidden)}
    if config["use_ordered_embeddings"]:
        found["masked_embedding.centroids.weight"] = (config["num_centroids"], hidden)
        found["masked_embedding.token_ordering"] = (text["vocab_size"],)
    return found
