"""A Gemma 4 checkpoint as GGUF files, as llama.cpp's own convert_hf_to_gguf.py writes them: decoder and towers.

Needs the package gguf; no torch. What that script leaves to chance is set: `<turn|>` ends a turn.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.pipeline import read_config
from edge_runtime.export.safetensors import Checkpoint
from edge_runtime.gemma.geometry import Geometry
from edge_runtime.gemma.shapes import FULL, SLIDING

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.gemma.shapes import AudioGeometry, TextGeometry, VisionGeometry

_DECODER = "model.language_model."
_VISION, _AUDIO = ("model.vision_tower.", "model.embed_vision."), ("model.audio_tower.", "model.embed_audio.")
_UNROTATED = 1e30  # a divisor of a frequency so large that the pair stands still
# llama.cpp's parser of answers reads these as text.
_SHOWN = {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'}
# llama.cpp gives a template the results of tools inside the message that calls them, as Google's own template wants it.
_CALLS_END = "{{ '}<tool_call|>' }}{%- endfor -%}{%- set ns.open = true -%}"
_RESULTS = (
    "{%- for r in m['tool_responses'] or [] -%}{{ '<|tool_response>response:' + (r['name'] or 'unknown') + '{' }}"
    "{%- if r['response'] is mapping -%}{%- for k, v in r['response'] | dictsort -%}{{ k }}:{{ arg(v) }}"
    "{{ ',' if not loop.last }}{%- endfor -%}{%- else -%}{{ 'value:' }}{{ arg(r['response']) }}{%- endif -%}"
    "{{ '}<tool_response|>' }}{%- endfor -%}{%- if m['tool_responses'] and m['content'] -%}{{ body(m['content']) }}"
    "{{ '<turn|>\n' }}{%- set ns.open = false -%}{%- endif -%}"
)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BOUNDS = tuple(f".{side}_{end}" for side in ("input", "output") for end in ("max", "min"))


def write_gguf(checkpoint: Path, out: Path, *, wide: bool) -> None:
    """Writes the decoder.

    Args:
        checkpoint: Folder of a Gemma 4 with tower prefixes.
        out: The file to make.
        wide: Matrices as float32, else as bfloat16; vectors are float32 either way.
    """
    text = Geometry.from_config(read_config(checkpoint)).text
    writer = gguf.GGUFWriter(out, "gemma4")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if wide else gguf.LlamaFileType.MOSTLY_BF16)
    add_geometry(writer, text)
    add_vocabulary(writer, checkpoint)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA4, text.num_layers)
    writer.add_tensor("rope_freqs.weight", rope_factors(text))
    with Checkpoint(checkpoint) as tensors:
        for name in sorted(tensors.names()):
            if name.startswith(_DECODER):
                plain = "model." + name.removeprefix(_DECODER)
                _add(writer, decoder_name(table, plain), tensors.get(name).read(), wide=wide)
    _finish(writer)


def write_towers(checkpoint: Path, out: Path, *, wide: bool) -> None:
    """Writes image and audio towers: llama.cpp's "mmproj".

    Args:
        checkpoint: As in `write_gguf`; one or both towers.
        out: The file to make.
        wide: As in `write_gguf`.
    """
    geometry = Geometry.from_config(read_config(checkpoint))
    writer = gguf.GGUFWriter(out, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if wide else gguf.LlamaFileType.MOSTLY_BF16)
    if geometry.vision is not None:
        _add_vision(writer, geometry.vision, geometry.text.hidden_size)
    if geometry.audio is not None:
        _add_audio(writer, geometry.audio, geometry.text.hidden_size)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 64)
    with Checkpoint(checkpoint) as tensors:
        for name in sorted(tensors.names()):
            if not name.startswith((*_VISION, *_AUDIO)):
                continue
            values = np.atleast_1d(tensors.get(name).read())
            plain, values = _hearing(name, values) if name.startswith(_AUDIO) else _seeing(name, values)
            known = table.get_name(plain, try_suffixes=(".weight", ".bias", *_BOUNDS))
            if known is None:
                raise EdgeRuntimeError(f"{name} has no place in a GGUF")
            exact = wide or "conv" in name or "position_embedding" in name
            _add(writer, known, values, wide=exact)
    _finish(writer)


def decoder_name(table: gguf.TensorNameMap, name: str) -> str:
    """What a tensor `model.layers...` of the decoder is called in a GGUF.

    Raises:
        EdgeRuntimeError: It has no place there.
    """
    for suffix, part in ((".router.scale", "ffn_gate_inp"), (".router.per_expert_scale", "ffn_down_exps")):
        if name.endswith(suffix):
            return f"blk.{name.split('.')[2]}.{part}.scale"
    known = table.get_name(name, try_suffixes=(".weight",))
    if known is None:
        raise EdgeRuntimeError(f"{name} has no place in a GGUF")
    # A layer's scalar and its experts have no suffix here and one there.
    return str(known) if known.endswith(".weight") else f"{known}.weight"


def rope_factors(text: TextGeometry) -> NDArray[np.float32]:
    """Divisors of the frequencies of full layers: one for the pairs that turn."""
    pairs, turning = text.head_dim(FULL) // 2, text.rotated_pairs(FULL)
    return np.array([1.0] * turning + [_UNROTATED] * (pairs - turning), np.float32)


def add_geometry(writer: gguf.GGUFWriter, text: TextGeometry) -> None:
    """Adds the decoder's numbers."""
    full, sliding = text.head_dim(FULL), text.head_dim(SLIDING)
    writer.add_block_count(text.num_layers)
    writer.add_context_length(text.max_positions)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(list(text.mlp_widths))
    writer.add_head_count(text.num_heads)
    writer.add_head_count_kv(list(text.kv_heads))
    writer.add_rope_freq_base(text.rope_theta_full)
    writer.add_rope_freq_base_swa(text.rope_theta_sliding)
    writer.add_layer_norm_rms_eps(text.rms_eps)
    writer.add_key_length(full)
    writer.add_value_length(full)
    writer.add_key_length_swa(sliding)
    writer.add_value_length_swa(sliding)
    writer.add_rope_dimension_count(full)
    writer.add_rope_dimension_count_swa(sliding)
    writer.add_final_logit_softcapping(text.softcap)
    writer.add_sliding_window(text.sliding_window)
    writer.add_sliding_window_pattern([kind == SLIDING for kind in text.layer_types])
    writer.add_shared_kv_layers(text.num_shared_layers)
    writer.add_embedding_length_per_layer_input(text.ple_dim)
    if text.num_experts:
        writer.add_expert_count(text.num_experts)
        writer.add_expert_used_count(text.experts_per_token)
        writer.add_expert_feed_forward_length(text.expert_width)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int = 0) -> None:
    """Adds the words of a tokenizer.json, filled up to `size`, and the chat template beside it."""
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = dict(data["model"]["vocab"]) | {token["content"]: token["id"] for token in data["added_tokens"]}
    by_id = {number: word for word, number in words.items()}
    special = {token["content"] for token in data["added_tokens"] if token["special"]}
    tokens = [by_id.get(i, f"<unused{i}>") for i in range(max(size, 1 + max(by_id)))]
    added = {token["content"] for token in data["added_tokens"]}
    plain, control, whole = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED
    kinds = [control if word in special - _SHOWN else whole if word in added else plain for word in tokens]
    kinds = [gguf.TokenType.BYTE if _BYTE.fullmatch(word) else k for word, k in zip(tokens, kinds, strict=True)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens)
    writer.add_token_scores([-1000.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(True)
    roles = {"<bos>": writer.add_bos_token_id, "<eos>": writer.add_eos_token_id, "<turn|>": writer.add_eot_token_id}
    roles |= {"<pad>": writer.add_pad_token_id, "<unk>": writer.add_unk_token_id}
    for word, add in roles.items():
        if word in words:
            add(words[word])
    template = folder / "chat_template.jinja"
    if template.is_file():
        text = template.read_text(encoding="utf-8")
        writer.add_chat_template(text.replace(_CALLS_END, _CALLS_END + _RESULTS))


def _add(writer: gguf.GGUFWriter, name: str, values: NDArray[Any], *, wide: bool) -> None:
    values = np.ascontiguousarray(values, np.float32)
    if wide or values.ndim < 2:
        writer.add_tensor(name, values)
    else:
        bf16 = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(values, bf16), raw_dtype=bf16)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vision(writer: gguf.GGUFWriter, vision: VisionGeometry, width: int) -> None:
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_vision_projector_type(gguf.VisionProjectorType.GEMMA4V)
    writer.add_vision_projection_dim(width)
    writer.add_vision_image_size(224)  # any: the towers take what they are given
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.mlp_width)
    writer.add_vision_block_count(vision.num_layers)
    writer.add_vision_head_count(vision.num_heads)
    writer.add_vision_image_mean([0.0, 0.0, 0.0])
    writer.add_vision_image_std([1.0, 1.0, 1.0])
    writer.add_vision_attention_layernorm_eps(vision.rms_eps)


def _add_audio(writer: gguf.GGUFWriter, audio: AudioGeometry, width: int) -> None:
    writer.add_clip_has_audio_encoder(True)
    writer.add_clip_audio_projector_type(gguf.VisionProjectorType.GEMMA4A)
    writer.add_audio_projection_dim(width)
    writer.add_audio_embedding_length(audio.hidden_size)
    writer.add_audio_feed_forward_length(4 * audio.hidden_size)
    writer.add_audio_block_count(audio.num_layers)
    writer.add_audio_head_count(audio.num_heads)
    writer.add_audio_num_mel_bins(audio.mel_bins)
    writer.add_audio_attention_layernorm_eps(audio.rms_eps)


def _seeing(name: str, values: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    plain = name.replace("model.vision_tower.encoder.", "vision_model.model.").replace(".linear.weight", ".weight")
    if plain.endswith(("layer_scalar", "position_embedding_table")):
        plain += ".weight"
    if plain.endswith("patch_embedder.input_proj.weight"):  # of (row, column, channel), wanted (channel, row, column)
        side = round((values.shape[1] / 3) ** 0.5)
        values = values.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    return plain, values


def _hearing(name: str, values: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    plain = name.replace("model.audio_tower.", "conformer.").replace(".linear.", ".")
    if plain.endswith(("per_dim_key_scale", "per_dim_scale")):
        plain += ".weight"
        values = np.logaddexp(0, values.astype(np.float64))  # softplus
    if plain.endswith("depthwise_conv1d.weight"):
        values = values.reshape(values.shape[0], values.shape[2])
    return plain, values
