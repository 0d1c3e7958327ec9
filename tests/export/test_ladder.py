"""The exactness ladder: decoders of every shape that a config can ask for, against transformers (eager, float32).

`pytest -m oracle -s tests/export/test_ladder.py` prints the worst difference of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx.decoder import Decoder
from edge_runtime.export import export_checkpoint
from tests.export.decoding import session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.oracle

LIMIT = 1e-3
TOKENS = 60
SIZES = (60, 13, 5, 1)  # of prefill chunks; what remains of 40 tokens goes one by one
PREFILL = 40

SLIDING, FULL = "sliding_attention", "full_attention"
PLAIN: dict[str, Any] = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
LARGE: dict[str, Any] = {**PLAIN, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
EXPERTS: dict[str, Any] = {
    "enable_moe_block": True,
    "num_experts": 16,
    "top_k_experts": 3,
    "moe_intermediate_size": 32,
}

DECODERS: dict[str, dict[str, Any]] = {
    "as E2B": {},
    "as E4B": {"num_kv_shared_layers": 5, "use_double_wide_mlp": False, "num_attention_heads": 8},
    "as 31B": {**LARGE, "num_attention_heads": 8, "num_key_value_heads": 4},
    "as 26B-A4B": {**LARGE, **EXPERTS, "num_attention_heads": 8, "num_key_value_heads": 4},
    "odd sizes": {
        "hidden_size": 50,
        "intermediate_size": 37,
        "hidden_size_per_layer_input": 6,
        "vocab_size": 101,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 48,
        "global_head_dim": 80,
    },
    "1 kv head": {"num_key_value_heads": 1},
    "3 kv heads of 6": {"num_key_value_heads": 3, "num_attention_heads": 6, "hidden_size": 72},
    "8 kv heads of 8": {"num_key_value_heads": 8, "num_attention_heads": 8},
    "8 kv heads, 2 on full layers": {**LARGE, "num_attention_heads": 8, "num_key_value_heads": 8}
    | {"num_global_key_value_heads": 2},
    "k_eq_v, shared": {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "global_head_dim": 64},
    "nothing shared": {"num_kv_shared_layers": 0},
    "all but one shared": {"num_kv_shared_layers": 7, "layer_types": [SLIDING, FULL, SLIDING] * 3},
    "no per-layer inputs, shared": {"hidden_size_per_layer_input": 0},
    "no softcap": {"final_logit_softcapping": None},
    "window of 1": {"sliding_window": 1},
    "window longer than the prompt": {"sliding_window": 100},
    "full layers only": {"layer_types": [FULL] * 9},
    "sliding layers but for the last": {**PLAIN, "layer_types": [SLIDING] * 8 + [FULL]},
    "layer scalars": {"layer_scalars": (0.03, 1.7, 1e-4, -0.6, 5e-3)},
    "layer scalars of 1": {"layer_scalars": (1.0,)},
    "large eps": {"rms_norm_eps": 1e-2},
    "whole heads turn": {
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 5000.0},
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 1.0, "rope_theta": 1e5},
        }
    },
    "half of a head turns": {
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1e6},
        }
    },
    "experts, shared layers, per-layer inputs": {**EXPERTS, "num_experts": 7, "top_k_experts": 1},
    "all experts, odd width": {**PLAIN, **EXPERTS, "num_experts": 5, "top_k_experts": 5, "moe_intermediate_size": 11},
}

VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
VISION |= {"num_key_value_heads": 4, "patch_size": 4, "position_embedding_size": 40}
SEE = {"use_bidirectional_attention": "vision"}
# Two images of 12 soft tokens each, longer than the usual window of 8.
IMAGES = ((7, 19), (21, 33))
GRIDS = ((12, 9), (9, 12))

SEEING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "causal images": ({}, {"standardize": False}),
    "causal images, standardize": ({}, {"standardize": True}),
    "whole images, as 31B": ({**LARGE, **SEE}, {"standardize": True}),
    "whole images, as 26B-A4B": ({**LARGE, **EXPERTS, **SEE, "sliding_window": 16}, {"standardize": True}),
    "whole images, shared layers": ({**SEE}, {"standardize": False}),
    "whole images, long window": ({**SEE, "sliding_window": 100}, {"standardize": False}),
}


def worst(
    decoder: Decoder, ids: Any, expected: Any, images: Sequence[tuple[int, int]] = (), features: Sequence[Any] = ()
) -> float:
    """Prefill in chunks of each size, every kept position; then token by token, past the window."""
    differences = []
    for size in SIZES:
        for buffer in decoder.cache.buffers.values():
            buffer.fill(1e3)  # rows not yet written must not matter
        decoder.begin(images)
        runs = list(decoder.cuts(PREFILL if size < TOKENS else TOKENS, size))
        runs += [(at, at + 1) for at in range(runs[-1][1], TOKENS)]
        for first, end in runs:
            embeddings = decoder.embed(ids[first:end])
            for (start, stop), soft in zip(images, features, strict=True):
                low, high = max(start, first), min(stop, end)
                if low < high:
                    embeddings[low - first : high - first] = soft[low - start : high - start]
            keep = min(max(1, (end - first) // 2) if size < TOKENS else end - first, decoder.most_kept)
            logits = decoder.step(ids[first:end], embeddings, keep)
            differences.append(np.abs(logits - expected[end - keep : end]).max())
    return float(np.max(differences))


@pytest.mark.parametrize("name", DECODERS)
def test_decoder(tmp_path: Path, name: str) -> None:
    import torch

    from tests.export.oracle import text_model

    model = text_model(tmp_path / "model", **DECODERS[name])
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="fp32")
    ids = np.random.default_rng(1).integers(0, 100, TOKENS)
    with torch.no_grad():
        expected = model(torch.tensor(ids)[None], output_hidden_states=True).logits[0].numpy()
    decoder = Decoder(
        tmp_path / "bundle", read_manifest(tmp_path / "bundle"), context=TOKENS, threads=1, chunk=max(SIZES)
    )
    difference = worst(decoder, ids, expected)
    decoder.close()
    print(f"{name}: {difference:.1e} of {np.abs(expected).max():.0f}")
    assert difference < LIMIT


@pytest.mark.parametrize("name", SEEING)
def test_images(tmp_path: Path, name: str) -> None:
    import torch

    from tests.export.oracle import IMAGE, whole_model

    text, vision = SEEING[name]
    model = whole_model(tmp_path / "model", VISION | vision, None, **text)
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="fp32")
    rng = np.random.default_rng(1)
    ids = rng.integers(1, 100, TOKENS)
    pixels = rng.random((2, 108, 48), np.float32)
    grids = [np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).reshape(-1, 2) for w, h in GRIDS]
    for first, end in IMAGES:
        ids[first:end] = IMAGE
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(ids)[None],
            pixel_values=torch.tensor(pixels),
            image_position_ids=torch.tensor(np.stack(grids)),
            mm_token_type_ids=torch.tensor(ids == IMAGE).int()[None],
        ).logits[0]
    manifest = read_manifest(tmp_path / "bundle")
    tower = session(tmp_path / "bundle" / names.VISION)
    features = [
        tower.run(None, {"pixel_values": image, "pixel_position_ids": grid})[0]
        for image, grid in zip(pixels, grids, strict=True)
    ]
    ids[ids == IMAGE] = manifest.geometry.pad
    decoder = Decoder(tmp_path / "bundle", manifest, context=TOKENS, threads=1, chunk=max(SIZES))
    difference = worst(decoder, ids, expected.numpy(), IMAGES, features)
    decoder.close()
    print(f"{name}: {difference:.1e} of {expected.abs().max():.0f}")
    assert difference < LIMIT
