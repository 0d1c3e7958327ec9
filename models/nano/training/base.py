"""Everything of the checkpoint but its weights: tokenizer, chat template, processor settings, configurations.

Run: `python base.py OUT` writes OUT (the model) and OUT/drafter (its multi-token-prediction drafter).
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    from . import dialog, lexicon, text
except ImportError:  # run from inside the folder, as on a machine without the repository
    import dialog  # type: ignore[import-not-found, no-redef]
    import lexicon  # type: ignore[import-not-found, no-redef]
    import text  # type: ignore[import-not-found, no-redef]

VOCAB = 2048
SOFT_TOKENS = 70
SLIDING_WINDOW = 128
SPECIAL = [
    "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|image>", "<|image|>", "<image|>", "<|audio>",
    "<|audio|>", "<audio|>", "<|video|>", "<|channel>", "<channel|>", "<|think|>", '<|"|>', "<|tool>", "<tool|>",
    "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>",
]  # fmt: skip
# Names GemmaTokenizer gives to Gemma 4's special tokens.
ROLES = {
    "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
    "boa_token": "<|audio>", "eoa_token": "<audio|>", "sot_token": "<|turn>", "eot_token": "<turn|>",
    "soc_token": "<|channel>", "eoc_token": "<channel|>", "think_token": "<|think|>", "escape_token": '<|"|>',
    "str_token": "<|tool_response>", "etr_token": "<tool_response|>", "stc_token": "<|tool_call>",
    "etc_token": "<tool_call|>", "std_token": "<|tool>", "etd_token": "<tool|>",
}  # fmt: skip
# JSON types fill half of a tool's declaration: one token each. Other capitals stay single letters, as signs are read.
TYPE_WORDS = ["STRING", "INTEGER", "NUMBER", "BOOLEAN", "OBJECT", "ARRAY"]


def _corpus() -> Iterator[str]:
    r = random.Random(5)
    pool = text.corpus(11, 16000)
    answered = [utterance for utterance in pool if utterance.answer]
    for utterance in pool:
        yield utterance.written
        yield utterance.answer or ""
        example = dialog.text_example(r, pool, answered)
        yield example.prompt
        yield example.answer
        if r.random() < 0.25:
            yield dialog.ASR_PROMPT
    for name in dialog.TOOLS:
        for _ in range(200):
            yield dialog.declaration(name)
    for word in lexicon.ALL_WORDS * 3:
        yield f"{word} {word} {word.capitalize()}"


def train_tokenizer() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-fallback BPE over the domain. Returns (vocabulary, merges)."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    split = re.compile("|".join(re.escape(s) for s in sorted([*SPECIAL, *TYPE_WORDS], key=len, reverse=True)))
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # The stock class merges without a pre-tokenizer, so no merge may join digits, capitals or punctuation.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[A-Z]?[a-z_]+|▁?[^a-z_▁]|▁"), "isolated")
    alphabet = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 256 - len(TYPE_WORDS),
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        min_frequency=3,
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for line in _corpus() for part in split.split(line) if part), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    merges = [(left, right) for left, right in model["merges"]]
    for word in [*(f"<0x{byte:02X}>" for byte in range(256)), *TYPE_WORDS]:
        vocab[word] = len(vocab)
    while len(vocab) < VOCAB:
        vocab[f"<unused{len(vocab)}>"] = len(vocab)
    return vocab, merges


def write_tokenizer(out: Path) -> Any:
    """Writes the tokenizer as the stock GemmaTokenizer with Gemma 4's special tokens; returns it."""
    from transformers import AddedToken, GemmaTokenizer

    vocab, merges = train_tokenizer()
    tokenizer = GemmaTokenizer(
        vocab=vocab, merges=merges, add_bos_token=False, padding_side="left", extra_special_tokens=ROLES
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in TYPE_WORDS])
    assert len(tokenizer) == VOCAB
    tokenizer.save_pretrained(out)
    shutil.copyfile(Path(__file__).parent / "chat_template.jinja", out / "chat_template.jinja")
    checks = [dialog.ASR_PROMPT, dialog.declaration("set_light"), "EXIT 42", "Set it to 21 degrees.", "Zoë 日本?"]
    for line in checks:
        ids = tokenizer(line, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == line, (tokenizer.decode(ids), line)
    return tokenizer


def write_processor(out: Path) -> None:
    """processor_config.json: image, audio and video front ends with this model's image budget."""
    image = {
        "do_convert_rgb": True, "do_normalize": False, "do_rescale": True, "do_resize": True,
        "image_mean": [0.0] * 3, "image_std": [1.0] * 3, "max_soft_tokens": SOFT_TOKENS, "patch_size": 16,
        "pooling_kernel_size": 3, "resample": 3, "rescale_factor": 1 / 255,
    }  # fmt: skip
    audio = {
        "dither": 0.0, "feature_extractor_type": "Gemma4AudioFeatureExtractor", "feature_size": 128,
        "fft_length": 512, "fft_overdrive": False, "frame_length": 320, "hop_length": 160, "input_scale_factor": 1.0,
        "max_frequency": 8000.0, "mel_floor": 0.001, "min_frequency": 0.0, "padding_side": "right",
        "padding_value": 0.0, "per_bin_mean": None, "per_bin_stddev": None, "preemphasis": 0.0,
        "preemphasis_htk_flavor": True, "return_attention_mask": True, "sampling_rate": 16000,
    }  # fmt: skip
    video = image | {
        "do_normalize": True, "do_sample_frames": True, "num_frames": 32, "return_metadata": False,
        "video_processor_type": "Gemma4VideoProcessor",
    }  # fmt: skip
    config = {
        "audio_ms_per_token": 40,
        "audio_seq_length": 750,
        "feature_extractor": audio,
        "image_processor": image | {"image_processor_type": "Gemma4ImageProcessor"},
        "image_seq_length": SOFT_TOKENS,
        "processor_class": "Gemma4Processor",
        "video_processor": video,
    }
    (out / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n")


def model_config(token_id: Any) -> Any:
    """The architecture: E2B's features, all of them, at 15.7 M parameters."""
    from transformers import Gemma4AudioConfig, Gemma4Config, Gemma4TextConfig, Gemma4VisionConfig

    text_config = Gemma4TextConfig(
        vocab_size=VOCAB, vocab_size_per_layer_input=VOCAB, hidden_size=256, intermediate_size=512,
        num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=1, head_dim=64, global_head_dim=128,
        hidden_size_per_layer_input=32, num_kv_shared_layers=4, use_double_wide_mlp=True,
        sliding_window=SLIDING_WINDOW, layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 2,
        max_position_embeddings=4096, final_logit_softcapping=30.0, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    vision_config = Gemma4VisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=3,
        head_dim=64, position_embedding_size=128, use_clipped_linears=True,
    )  # fmt: skip
    audio_config = Gemma4AudioConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=4, output_proj_dims=256)
    return Gemma4Config(
        text_config=text_config, vision_config=vision_config, audio_config=audio_config,
        boi_token_id=token_id("<|image>"), eoi_token_id=token_id("<image|>"), image_token_id=token_id("<|image|>"),
        video_token_id=token_id("<|video|>"), boa_token_id=token_id("<|audio>"), eoa_token_index=token_id("<audio|>"),
        audio_token_id=token_id("<|audio|>"), eos_token_id=[1, token_id("<turn|>")],
    )  # fmt: skip


def drafter_config() -> Any:
    """The drafter: two layers that read the model's last sliding and last full KV."""
    from transformers import Gemma4AssistantConfig, Gemma4TextConfig

    text_config = Gemma4TextConfig(
        vocab_size=VOCAB, vocab_size_per_layer_input=0, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=1, head_dim=64, global_head_dim=128,
        hidden_size_per_layer_input=0, num_kv_shared_layers=2, use_double_wide_mlp=False,
        sliding_window=SLIDING_WINDOW, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=4096, final_logit_softcapping=None, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return Gemma4AssistantConfig(
        text_config=text_config, backbone_hidden_size=256, use_ordered_embeddings=True, num_centroids=64,
        centroid_intermediate_top_k=8,
    )  # fmt: skip


def write_shapes(out: Path, config: Any) -> None:
    """shapes.json: every trained weight's name and shape, for a trainer that has no transformers."""
    import torch
    from transformers import Gemma4ForConditionalGeneration

    with torch.device("meta"):
        state = Gemma4ForConditionalGeneration(config).state_dict()
    bounds = ("input_min", "input_max", "output_min", "output_max")
    kept = {name: list(value.shape) for name, value in state.items() if name.rsplit(".", 1)[-1] not in bounds}
    kept.pop("lm_head.weight", None)
    (out / "shapes.json").write_text(json.dumps(kept) + "\n")


def write_base(out: Path) -> None:
    """Writes the whole folder."""
    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(out)
    write_processor(out)
    token_id = tokenizer.convert_tokens_to_ids
    config = model_config(token_id)
    config.save_pretrained(out)
    write_shapes(out, config)
    stops = [1, token_id("<turn|>"), token_id("<|tool_response>")]
    GenerationConfig(
        pad_token_id=0, bos_token_id=2, eos_token_id=stops, do_sample=False, max_new_tokens=256
    ).save_pretrained(out)
    drafter_config().save_pretrained(out / "drafter")


if __name__ == "__main__":
    write_base(Path(sys.argv[1]))
