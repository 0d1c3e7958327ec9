"""Makes a checkpoint in the form that the vendor's mobile ones have, of one in bfloat16.

python -m benchmarks.mobile_checkpoint build/e2b build/e2b-qat-mobile

Bits are those of the published E2B: 2 for the wide MLPs of layers that share keys and for the token embedding, which
the head repeats, 8 for per-layer gates and projections and for the towers, 4 for the rest and the per-layer embedding.
Weights are rounded to the nearest, activations are rounded to multiples of one number: nothing is trained, so this is
for sizes and speed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edge_runtime.export.quant import pack
from edge_runtime.export.safetensors import Checkpoint, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

STEP = 0.05
_ROWS = 4096
_TEXT = "model.language_model."
_EMBEDDING, _PER_LAYER = f"{_TEXT}embed_tokens", f"{_TEXT}embed_tokens_per_layer"
_FREE = re.compile(r"per_layer_model_projection|embed_(vision|audio)|patch_embedder|subsample|conv1d|norm")
_DTYPES = {"F32": 4, "BF16": 2, "U8": 1, "I8": 1}

Written = dict[str, tuple[str, tuple[int, ...], "Iterator[NDArray[Any]]"]]
"""By name: dtype, shape, and the values piece by piece."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mobile_checkpoint", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("source", type=Path, help="a checkpoint folder")
    parser.add_argument("out", type=Path, help="a new folder")
    arguments = parser.parse_args(argv)
    if arguments.out.exists():
        sys.exit(f"{arguments.out} exists")
    write(arguments.source, arguments.out)


def write(source: Path, out: Path) -> None:
    """Writes the whole folder."""
    out.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    bits = module_bits(text["num_hidden_layers"] - text["num_kv_shared_layers"])
    config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    config["quantization_config"] = {
        "quant_method": "gemma",
        "num_bits": 4,
        "quantize_embeddings": True,
        "module_quant_configs": {pattern: {"num_bits": number} for pattern, number in bits.items()},
        "modules_to_not_convert": ["patch_embedder", "embed_vision", "embed_audio", "per_layer_model_projection"],
    }
    for path in source.iterdir():
        if not path.name.startswith("model") and path.name != "config.json":
            shutil.copyfile(path, out / path.name)
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    with Checkpoint(source) as checkpoint, (out / "model.safetensors").open("wb") as file:
        tensors: Written = {}
        for name in checkpoint.names():
            tensors |= _stored(checkpoint.get(name), bits, text["num_hidden_layers"])
        _write(file, tensors)


def module_bits(own: int) -> dict[str, int]:
    """Bits by patterns of module names, of which the first that fits counts; the first `own` layers have own keys."""
    return {
        r"^lm_head$": 2,
        r"language_model\.embed_tokens$": 2,
        r"language_model\.embed_tokens_per_layer$": 4,
        rf"language_model\.layers\.({'|'.join(map(str, range(own)))})\.mlp\.": 4,
        r"language_model\.layers\.\d+\.mlp\.": 2,
        r"per_layer_(input_gate|projection)$": 8,
        r"(vision|audio)_tower": 8,
    }


def _stored(tensor: Tensor, bits: dict[str, int], layers: int) -> Written:
    """What a tensor becomes."""
    base = tensor.name.removesuffix(".weight")
    if base == tensor.name or len(tensor.shape) != 2 or _FREE.search(base):
        return {tensor.name: (tensor.dtype, tensor.shape, _pieces(tensor))}
    number = next((bits[pattern] for pattern in bits if re.search(pattern, base)), 4)
    table = base in {_EMBEDDING, _PER_LAYER}
    groups = layers if base == _PER_LAYER else 1
    found = _rounded(tensor, base, "embedding_quantized" if table else "weight", number, groups)
    if base == _EMBEDDING:
        found |= _rounded(tensor, "lm_head", "weight", number, groups)
    return found


def _rounded(tensor: Tensor, base: str, kind: str, bits: int, groups: int) -> Written:
    rows, width = tensor.shape
    dtype, scale = ("I8" if bits == 8 else "U8"), "weight_scale" if kind == "weight" else "embedding_scale"
    found: Written = {
        f"{base}.{kind}": (
            dtype,
            (rows, width * bits // 8),
            (_round(*part, bits)[0] for part in _blocks(tensor, groups)),
        ),
        f"{base}.{scale}": ("F32", (rows, groups), (_round(*part, bits)[1] for part in _blocks(tensor, groups))),
    }
    for side in ("input", "output") if kind == "weight" else ():
        found[f"{base}.{side}_activation_scale"] = ("F32", (), iter([np.array(STEP, np.float32)]))
    return found


def _blocks(tensor: Tensor, groups: int) -> Iterator[tuple[NDArray[np.float32], int]]:
    for start in range(0, tensor.shape[0], _ROWS):
        yield tensor.read(start, start + _ROWS), groups


def _round(values: NDArray[np.float32], groups: int, bits: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Levels as they are stored, and scales."""
    blocks = values.reshape(len(values), groups, -1)
    top = 1 << (bits - 1)
    # Of normal values, at 2 bits: the lowest level is two deviations away.
    size = np.abs(blocks).max(-1) if bits > 2 else 2 * blocks.std(-1)
    steps = (np.maximum(size, 1e-9) / top).astype(np.float32)
    levels = np.clip(np.rint(blocks / steps[..., None]), -top, top - 1).reshape(values.shape)
    return levels.astype(np.int8) if bits == 8 else pack(levels, bits), steps


def _pieces(tensor: Tensor) -> Iterator[NDArray[Any]]:
    if not tensor.shape:
        yield tensor.stored()
        return
    for start in range(0, tensor.shape[0], _ROWS):
        yield tensor.stored(start, start + _ROWS)


def _write(file: BinaryIO, tensors: Written) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, _) in tensors.items():
        end = offset + math.prod(shape) * _DTYPES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, _, pieces in tensors.values():
        file.writelines(
            np.ascontiguousarray(piece).data.cast("B") if piece.ndim else piece.tobytes() for piece in pieces
        )


if __name__ == "__main__":
    main()
