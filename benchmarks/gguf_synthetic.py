"""A GGUF of a Gemma 4 with random weights, at true size or cut down: `python -m benchmarks.gguf_synthetic 26b-a4b OUT`.

As publishers make them at four bits: matrices Q4_0, embeddings Q6_K. Speed and memory are those of a trained model;
what it says is noise. Written tensor by tensor, in a few megabytes of memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from benchmarks.gguf_files import add_geometry, add_vocabulary, decoder_name, rope_factors
from benchmarks.synthetic_configs import MODELS, config
from benchmarks.synthetic_shapes import shapes, unused
from edge_runtime.builtin import checkpoint_path
from edge_runtime.gemma.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_DECODER = "model.language_model."
_TYPES = gguf.GGMLQuantizationType
_DEVIATION = 0.02
_CHUNK = 1 << 24
_TINY = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_global_key_value_heads": 1,
    "num_key_value_heads": 2,
    "global_head_dim": 128,
    "head_dim": 64,
    "top_k_experts": 2,
}
"""26B A4B with everything that makes it one, small enough for a test."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gguf_synthetic", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", choices=[*MODELS, "tiny-a4b"])
    parser.add_argument("out", type=Path, help="a new file")
    parser.add_argument("--layers", type=int, metavar="N", help="only the decoder's first N layers")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder with tokenizer.json and a chat template")
    arguments = parser.parse_args(argv)
    if arguments.out.exists():
        sys.exit(f"{arguments.out} exists")
    begun = time.monotonic()
    size = write(arguments.out, settings_of(arguments.model, arguments.layers), arguments.tokenizer)
    print(f"{arguments.out}: {size / 1e9:.2f} GB in {time.monotonic() - begun:.0f} s")


def settings_of(model: str, layers: int | None = None) -> dict[str, Any]:
    """config.json's contents of a model of `MODELS`, or of "tiny-a4b"."""
    if model != "tiny-a4b":
        return config(model, layers=layers)
    settings = config("26b-a4b", layers=layers or 6)
    settings["text_config"] |= _TINY | {"vocab_size": 2048, "sliding_window": 128, "max_position_embeddings": 4096}
    return settings


def write(out: Path, settings: dict[str, Any], tokenizer: Path | None = None, *, seed: int = 0) -> int:
    """Writes the decoder of the model that `settings` describe; the file's size in bytes.

    Args:
        out: The file.
        settings: Contents of config.json.
        tokenizer: Folder with tokenizer.json and chat_template.jinja; None: those of the built-in model.
        seed: For the weights.
    """
    text = Geometry.from_config(settings).text
    writer = gguf.GGUFWriter(out, "gemma4")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_name("synthetic")
    add_geometry(writer, text)
    add_vocabulary(writer, tokenizer or checkpoint_path(), text.vocab_size)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA4, text.num_layers)
    left_out = unused(settings)
    wanted: dict[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType]] = {}
    for name, shape in shapes(settings).items():
        if name.startswith(_DECODER) and name not in left_out:
            known = decoder_name(table, "model." + name.removeprefix(_DECODER))
            wanted[known] = (shape, _type_of(known, shape))
    wanted["rope_freqs.weight"] = (rope_factors(text).shape, _TYPES.F32)
    for known, (shape, kind) in wanted.items():
        stored = gguf.quant_shape_to_byte_shape(shape, kind) if kind != _TYPES.F32 else shape
        dtype = np.dtype(np.float32 if kind == _TYPES.F32 else np.uint8)
        size = int(np.prod(stored)) * dtype.itemsize
        writer.add_tensor_info(known, stored, dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    pools = {kind: _pool(kind, rng) for kind in (_TYPES.Q4_0, _TYPES.Q6_K)}
    with out.open("ab") as file:
        for known, (shape, kind) in wanted.items():
            file.write(bytes(-file.tell() % 32))
            if known == "rope_freqs.weight":
                file.write(rope_factors(text).tobytes())
            elif kind == _TYPES.F32:
                file.write(_vector(shape, rng).tobytes())
            else:
                for part in _blocks(pools[kind], int(np.prod(gguf.quant_shape_to_byte_shape(shape, kind)))):
                    file.write(part)
        file.write(bytes(-file.tell() % 32))
    writer.close()
    return out.stat().st_size


def _type_of(name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    """As llama-quantize chooses for Q4_0."""
    if len(shape) < 2 or "ffn_gate_inp" in name or "per_layer_model_proj" in name:
        return _TYPES.F32
    if "token_embd" in name and shape[-1] % 256 == 0:
        return _TYPES.Q6_K
    return _TYPES.Q4_0


def _pool(kind: gguf.GGMLQuantizationType, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Some megabytes of blocks whose weights have the deviation of a fresh model's."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (_CHUNK // size, size), np.uint8)
    if kind == _TYPES.Q4_0:  # a factor, then nibbles around 8
        blocks[:, :2] = np.array([_DEVIATION / 4.6], np.float16).view(np.uint8)
    else:  # six-bit numbers around 32, sixteen factors of one byte, a factor for them
        blocks[:, 192:208] = 1
        blocks[:, 208:] = np.array([_DEVIATION / 18.5], np.float16).view(np.uint8)
    return blocks.reshape(-1)


def _blocks(pool: NDArray[np.uint8], size: int) -> Iterator[memoryview]:
    while size > 0:
        part = pool[:size]
        yield part.data
        size -= len(part)


def _vector(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Norms, scales and scalars near 1; narrow matrices like the others."""
    values = _DEVIATION * rng.standard_normal(shape, np.float32)
    return values if len(shape) > 1 else (1 + values).astype(np.float32)


if __name__ == "__main__":
    main()
