"""File names inside a bundle, and tensor names shared by the graphs' builder and their runner."""

from __future__ import annotations

MANIFEST = "bundle.json"
CHECKSUMS = "checksums.crc32"

DECODER = "decoder_model_merged.onnx"
VISION = "vision_encoder.onnx"
AUDIO = "audio_encoder.onnx"
TOWERS = (VISION, AUDIO)
DRAFTER = "drafter.onnx"
PREFILL = "prefill.onnx"
"""Made of the decoder on the device, for prompts; never in a bundle."""

EMBED_TABLE = "embed_tokens.bin"
PLE_TABLE = "embed_tokens_per_layer.bin"

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
PROCESSOR_CONFIG = "processor_config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
GENERATION_CONFIG = "generation_config.json"

COPIED = (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    CHAT_TEMPLATE,
    PROCESSOR_CONFIG,
    PREPROCESSOR_CONFIG,
    GENERATION_CONFIG,
)
"""Taken over from the checkpoint, where it has them: unchanged, but for the form of the tokenizer's merges."""


def data_file(graph: str) -> str:
    """The file that holds the weights of a graph: `decoder_model_merged.onnx` -> `decoder_model_merged.onnx_data`."""
    return f"{graph}_data"


PARTS = ("key", "value")
"""Of a layer's cache."""


def past(layer: int, part: str) -> str:
    """Input name of a layer's cache; `part` is one of `PARTS`."""
    return f"past_key_values.{layer}.{part}"


def present(layer: int, part: str) -> str:
    """Output name of a layer's cache; bound to the same buffer as `past`."""
    return f"present.{layer}.{part}"


def before(layer: int, part: str, head: int) -> str:
    """Input name of the rows that one head of a layer's cache had before a step of few tokens."""
    return f"before.{layer}.{part}.{head}"


def given_back(present: str, number: int | str) -> str:
    """Output name of a cache that a node only reads and, where its kernel insists, gives back as well."""
    return f"{present}/{number}"
