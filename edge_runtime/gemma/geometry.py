"""The shape of a Gemma 4 model, read from its config.json and from nothing else.

The defaults of absent keys are those of transformers' configuration classes, which is what the checkpoint itself would
get. Two spellings of the per-layer values exist and both are read: `per_layer_config` (transformers >= 5.13) and
`global_head_dim` / `num_global_key_value_heads` (published checkpoints).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.shapes import FULL, SLIDING, AudioGeometry, TextGeometry, VisionGeometry

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FULL", "SLIDING", "AssistantGeometry", "AudioGeometry", "Geometry", "TextGeometry", "VisionGeometry"]

T = TypeVar("T")

_SLIDING_PATTERN = 6  # without layer_types, every sixth layer attends to everything
_DEFAULT_ROPE: dict[str, dict[str, Any]] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}


def unsupported(what: str) -> EdgeRuntimeError:
    """The error for a model that has something no graph here computes."""
    return EdgeRuntimeError(
        f"config.json: {what} is not supported; llama.cpp may run it as a GGUF: `edge-runtime models` lists some"
    )


@dataclass(frozen=True)
class AssistantGeometry:
    """The drafter (gemma4_assistant): a small decoder that reads its target's keys and values."""

    text: TextGeometry
    backbone_hidden_size: int
    """Hidden size of the target."""
    ordered_embeddings: bool
    """The head scores the tokens of the best `centroid_top_k` of `num_centroids` clusters only."""
    num_centroids: int
    centroid_top_k: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AssistantGeometry:
        """Reads a drafter's config.json.

        Raises:
            EdgeRuntimeError: not a gemma4_assistant config, or one that this program cannot run.
        """
        if config.get("model_type") != "gemma4_assistant":
            raise EdgeRuntimeError(f"the drafter's model_type is {config.get('model_type')!r}, not 'gemma4_assistant'")
        return cls(
            text=_text(_section(config, "text_config"), drafter=True),
            backbone_hidden_size=int(config.get("backbone_hidden_size", 1536)),
            ordered_embeddings=bool(config.get("use_ordered_embeddings", False)),
            num_centroids=int(config.get("num_centroids", 2048)),
            centroid_top_k=int(config.get("centroid_intermediate_top_k", 32)),
        )


@dataclass(frozen=True)
class Geometry:
    """A whole model: decoder, towers if any, and the ids of its special tokens (None: it has no such token)."""

    text: TextGeometry
    vision: VisionGeometry | None
    audio: AudioGeometry | None
    pad: int
    bos: int
    eos: tuple[int, ...]
    image: int | None
    boi: int | None
    eoi: int | None
    audio_token: int | None
    boa: int | None
    eoa: int | None
    video: int | None
    assistant: AssistantGeometry | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Geometry:
        """Reads a checkpoint's config.json (`model_type` gemma4 or gemma4_text).

        Raises:
            EdgeRuntimeError: another model_type, a missing key, or a feature that this program cannot run.
        """
        model_type = config.get("model_type")
        if model_type == "gemma4_text":
            outer: Mapping[str, Any] = {}
            inner: Mapping[str, Any] = config
        elif model_type == "gemma4":
            outer, inner = config, _section(config, "text_config")
        else:
            raise EdgeRuntimeError(
                f"config.json: model_type is {model_type!r}; known are 'gemma4' and 'gemma4_text' "
                "(others, such as the 12B, run as GGUF: `edge-runtime models` lists some)"
            )
        # A quantized one is stored twice; that both are the same is checked where weights are read.
        quantized = config.get("quantization_config") is not None
        if config.get("tie_word_embeddings", True) is False and not quantized:
            raise unsupported("an output head of its own (tie_word_embeddings false)")
        vision, audio = outer.get("vision_config"), outer.get("audio_config")
        sees, hears = vision is not None, audio is not None
        return cls(
            text=_text(inner, sees=sees),
            vision=_vision(vision) if vision is not None else None,
            audio=_audio(audio) if audio is not None else None,
            pad=_token(inner.get("pad_token_id", 0)) or 0,
            bos=_token(_either(outer, inner, "bos_token_id", 2)) or 2,
            eos=_tokens(_either(outer, inner, "eos_token_id", 1)),
            image=_token(outer.get("image_token_id", 258_880)) if sees else None,
            boi=_token(outer.get("boi_token_id", 255_999)) if sees else None,
            eoi=_token(outer.get("eoi_token_id", 258_882)) if sees else None,
            audio_token=_token(outer.get("audio_token_id", 258_881)) if hears else None,
            boa=_token(outer.get("boa_token_id", 256_000)) if hears else None,
            # The one key of config.json that says index instead of id.
            eoa=_token(outer.get("eoa_token_index", 258_883)) if hears else None,
            video=_token(outer.get("video_token_id", 258_884)) if sees else None,
        )

    def to_json(self) -> dict[str, Any]:
        """A dict that json can write and `from_json` reads back to an equal Geometry."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Geometry:
        """The inverse of `to_json`.

        Raises:
            EdgeRuntimeError: a key is missing or unknown.
        """
        try:
            fields = dict(data)
            fields["text"] = _build(TextGeometry, fields["text"])
            fields["vision"] = _build(VisionGeometry, fields["vision"]) if fields["vision"] else None
            fields["audio"] = _build(AudioGeometry, fields["audio"]) if fields["audio"] else None
            if assistant := fields.get("assistant"):
                text = _build(TextGeometry, assistant["text"])
                fields["assistant"] = AssistantGeometry(**{**assistant, "text": text})
            return _build(cls, fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise EdgeRuntimeError(f"the bundle's geometry cannot be read: {error}") from error


def _build(cls: type[T], fields: Mapping[str, Any]) -> T:
    """A dataclass from JSON: lists become the tuples they were."""
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise EdgeRuntimeError(f"config.json has no {name}")
    return section


def _either(first: Mapping[str, Any], second: Mapping[str, Any], key: str, default: Any) -> Any:
    for config in (first, second):
        if config.get(key) is not None:
            return config[key]
    return default


def _token(value: Any) -> int | None:
    return None if value is None else int(value)


def _tokens(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)


def _need(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise EdgeRuntimeError(f"config.json: {key} is {value!r}, a positive number is needed")
    return value


def _layer_types(config: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    given = config.get("layer_types")
    if given is None:
        given = [FULL if (i + 1) % _SLIDING_PATTERN == 0 else SLIDING for i in range(layers)]
    types = list(given)
    if len(types) != layers or not set(types) <= {SLIDING, FULL}:
        raise EdgeRuntimeError(f"config.json: layer_types must name {layers} layers, each {SLIDING} or {FULL}")
    types[-1] = FULL  # transformers forces it too
    return tuple(types)


def _per_layer(config: Mapping[str, Any], types: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Head size and number of key/value heads of each layer."""
    head_dim, kv_heads = int(config.get("head_dim", 256)), int(config.get("num_key_value_heads", 4))
    given = config.get("per_layer_config")
    if given is None:
        override: dict[str, Any] = {"head_dim": config.get("global_head_dim", 512) or head_dim}
        if config.get("attention_k_eq_v") and config.get("num_global_key_value_heads"):
            override["num_key_value_heads"] = config["num_global_key_value_heads"]
        given = {str(i): override for i, t in enumerate(types) if t == FULL}
    if not isinstance(given, dict) or not all(str(i).isdecimal() for i in given):
        raise EdgeRuntimeError("config.json: per_layer_config must map layer numbers to their values")
    by_layer = {int(i): row for i, row in given.items()}  # transformers writes "05" before "11"
    rows: list[tuple[int, int]] = []
    for i in range(len(types)):
        row = by_layer.get(i, {})
        unknown = {k for k, v in row.items() if v and v != config.get(k)} - {"head_dim", "num_key_value_heads"}
        if unknown:
            raise EdgeRuntimeError(f"config.json: per_layer_config of layer {i} sets {', '.join(sorted(unknown))}")
        rows.append((int(row.get("head_dim") or head_dim), int(row.get("num_key_value_heads") or kv_heads)))
    for layer_type in (SLIDING, FULL):
        if len({rows[i] for i, t in enumerate(types) if t == layer_type}) > 1:
            raise EdgeRuntimeError(f"config.json: per_layer_config differs between {layer_type} layers")
    return tuple(d for d, _ in rows), tuple(h for _, h in rows)


def _rope(config: Mapping[str, Any]) -> tuple[float, float, float]:
    """Theta of sliding layers, theta of full layers, and the fraction of pairs that turn on full layers."""
    given = config.get("rope_parameters") or _DEFAULT_ROPE
    sliding = given.get(SLIDING) or _DEFAULT_ROPE[SLIDING]
    full = given.get(FULL) or _DEFAULT_ROPE[FULL]
    for name, rope, known in ((SLIDING, sliding, ("default",)), (FULL, full, ("default", "proportional"))):
        kind = rope.get("rope_type", "default")
        if kind not in known or rope.get("factor", 1.0) != 1.0:
            raise EdgeRuntimeError(
                f"config.json: rope_type {kind!r} with a factor or of {name} layers is not supported"
            )
    partial = float(full.get("partial_rotary_factor", 1.0)) if full.get("rope_type") == "proportional" else 1.0
    return float(sliding["rope_theta"]), float(full["rope_theta"]), partial


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Features of the architecture that no graph here computes, and no published Gemma 4 has."""
    mode, activation = config.get("use_bidirectional_attention"), config.get("hidden_activation", "gelu_pytorch_tanh")
    refused = {
        f"use_bidirectional_attention {mode!r}": mode not in {None, "vision"},
        "attention_bias": config.get("attention_bias"),
        f"hidden_activation {activation!r}": activation != "gelu_pytorch_tanh",
    }
    for what, given in refused.items():
        if given:
            raise unsupported(what)


def _experts(config: Mapping[str, Any]) -> dict[str, int]:
    """The fields of TextGeometry that say how many experts there are, how many a token takes, and their width."""
    if not config.get("enable_moe_block"):
        return {"num_experts": 0, "experts_per_token": 0, "expert_width": 0}
    count, taken = _need(config, "num_experts"), _need(config, "top_k_experts")
    if taken > count:
        raise EdgeRuntimeError(f"config.json: top_k_experts is {taken}, there are {count} experts")
    return {
        "num_experts": count,
        "experts_per_token": taken,
        "expert_width": _need(config, "moe_intermediate_size"),
    }


def _text(config: Mapping[str, Any], *, sees: bool = False, drafter: bool = False) -> TextGeometry:
    _refuse_unsupported(config)
    layers, heads = _need(config, "num_hidden_layers"), _need(config, "num_attention_heads")
    types = _layer_types(config, layers)
    head_dims, kv_heads = _per_layer(config, types)
    if any(heads % n for n in kv_heads):
        raise EdgeRuntimeError(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads")
    own = 0 if drafter else layers - int(config.get("num_kv_shared_layers", 0) or 0)
    if drafter:
        sources = [-1] * layers
    else:
        last = {t: i for i, t in enumerate(types[:own])}
        if missing := set(types) - set(last):
            raise EdgeRuntimeError(f"config.json: no layer of type {min(missing)} keeps keys for the shared ones")
        sources = [i if i < own else last[t] for i, t in enumerate(types)]
    wide = 2 if config.get("use_double_wide_mlp") and not drafter else 1
    width = _need(config, "intermediate_size")
    theta_sliding, theta_full, partial = _rope(config)
    ple_dim = int(config.get("hidden_size_per_layer_input", 256) or 0)
    vocab = _need(config, "vocab_size")
    return TextGeometry(
        vocab_size=vocab,
        hidden_size=_need(config, "hidden_size"),
        num_layers=layers,
        num_heads=heads,
        layer_types=types,
        head_dims=head_dims,
        kv_heads=kv_heads,
        mlp_widths=tuple(width * (wide if i >= own else 1) for i in range(layers)),
        kv_sources=tuple(sources),
        num_own_layers=own,
        sliding_window=int(config.get("sliding_window", 512)),
        rope_theta_sliding=theta_sliding,
        rope_theta_full=theta_full,
        partial_rotary_factor=partial,
        ple_dim=ple_dim,
        ple_vocab_size=int(config.get("vocab_size_per_layer_input", vocab) or 0) if ple_dim else 0,
        rms_eps=float(config.get("rms_norm_eps", 1e-6)),
        softcap=float(config.get("final_logit_softcapping") or 0.0),
        k_eq_v=bool(config.get("attention_k_eq_v", False)),
        bidirectional_images=sees and config.get("use_bidirectional_attention") == "vision",
        **_experts(config),
        max_positions=int(config.get("max_position_embeddings", 131_072)),
    )


def _vision(config: Mapping[str, Any]) -> VisionGeometry:
    hidden, heads = int(config.get("hidden_size", 768)), int(config.get("num_attention_heads", 12))
    rope = config.get("rope_parameters") or {}
    # Published checkpoints call the axial form "default", and so transformers reads it.
    if rope.get("rope_type", "axial") not in {"axial", "default"}:
        raise EdgeRuntimeError(f"config.json: rope_type {rope['rope_type']!r} of the vision tower is not supported")
    if config.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh" or config.get("attention_bias"):
        raise EdgeRuntimeError("config.json: the vision tower's activation or attention_bias is not supported")
    return VisionGeometry(
        hidden_size=hidden,
        num_layers=int(config.get("num_hidden_layers", 16)),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads", heads)),
        head_dim=int(config.get("head_dim") or hidden // heads),
        mlp_width=int(config.get("intermediate_size", 3072)),
        patch_size=int(config.get("patch_size", 16)),
        pool_size=int(config.get("pooling_kernel_size", 3)),
        position_table_size=int(config.get("position_embedding_size", 10_240)),
        rope_theta=float(rope.get("rope_theta", 100.0)),
        rms_eps=float(config.get("rms_norm_eps", 1e-6)),
        clipped=bool(config.get("use_clipped_linears", False)),
        standardize=bool(config.get("standardize", False)),
    )


def _audio(config: Mapping[str, Any]) -> AudioGeometry:
    if config.get("hidden_act", "silu") != "silu":
        raise EdgeRuntimeError(f"config.json: hidden_act {config['hidden_act']!r} of the audio tower is not supported")
    channels = config.get("subsampling_conv_channels", (128, 32))
    return AudioGeometry(
        hidden_size=int(config.get("hidden_size", 1024)),
        num_layers=int(config.get("num_hidden_layers", 12)),
        num_heads=int(config.get("num_attention_heads", 8)),
        conv_channels=(int(channels[0]), int(channels[1])),
        conv_kernel_size=int(config.get("conv_kernel_size", 5)),
        residual_weight=float(config.get("residual_weight", 0.5)),
        chunk_size=int(config.get("attention_chunk_size", 12)),
        context_left=int(config.get("attention_context_left", 13)),
        context_right=int(config.get("attention_context_right", 0)),
        logit_cap=float(config.get("attention_logit_cap", 50.0)),
        invalid_logit=float(config.get("attention_invalid_logits_value", -1.0e9)),
        gradient_clipping=float(config.get("gradient_clipping", 1e10)),
        output_dim=int(config.get("output_proj_dims", 1536)),
        rms_eps=float(config.get("rms_norm_eps", 1e-6)),
        clipped=bool(config.get("use_clipped_linears", True)),
        # The stride-2 convolutions leave conv_channels[0] // 4 bins, which is how the checkpoint fixes their number.
        mel_bins=int(channels[0]),
    )
