"""Towers of random models against transformers; the worst difference is what the assertion shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import verify
from edge_runtime.export import export_checkpoint
from tests.export.decoding import session

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.oracle

LIMIT = 1e-3
STREAMED = 1e-4  # runs over parts of a clip against one over the whole

VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
VISION |= {"num_key_value_heads": 4, "patch_size": 4, "position_embedding_size": 40, "use_clipped_linears": True}
AUDIO: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "output_proj_dims": 48}
TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "clipped": ({}, {}, 0.8),
    "unbounded": ({}, {"attention_chunk_size": 8, "attention_context_left": 9}, np.inf),
    "plain": (
        {"num_key_value_heads": 2, "standardize": True, "pooling_kernel_size": 2, "rms_norm_eps": 1e-3}
        | {"use_clipped_linears": False},
        {"use_clipped_linears": False, "conv_kernel_size": 3, "rms_norm_eps": 1e-3, "attention_context_right": 2},
        np.inf,
    ),
    "odd sizes": (
        {"hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 3, "num_key_value_heads": 3}
        | {"head_dim": 12, "patch_size": 3},
        {"hidden_size": 36, "num_attention_heads": 3, "output_proj_dims": 50, "conv_kernel_size": 7}
        | {"attention_chunk_size": 5, "attention_context_left": 9, "subsampling_conv_channels": (64, 6)},
        0.8,
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_towers(tmp_path: Path, name: str) -> None:
    import torch

    from tests.export.oracle import whole_model

    vision, audio, bound = TOWERS[name]
    model = whole_model(tmp_path / "model", {**VISION, **vision}, {**AUDIO, **audio}, bound)
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="fp32")
    assert verify(tmp_path / "bundle") == []
    rng = np.random.default_rng(0)
    tower = session(tmp_path / "bundle" / names.VISION)
    for columns, rows in ((6, 6), (12, 18), (18, 6), (36, 6)):
        pixels = rng.random((columns * rows, tower.get_inputs()[0].shape[1]), np.float32)
        grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2).astype(np.int64)
        with torch.no_grad():
            images = model.model.get_image_features(torch.tensor(pixels)[None], torch.tensor(grid)[None])
        (got,) = tower.run(None, {"pixel_values": pixels, "pixel_position_ids": grid})
        assert np.abs(got - images.pooler_output[0].numpy()).max() < LIMIT
    tower = session(tmp_path / "bundle" / names.AUDIO)
    for frames, sound in ((1, 1), (5, 5), (97, 97), (130, 90), (192, 192)):
        mask = (np.arange(frames) < sound)[None]
        mel = rng.standard_normal((1, frames, tower.get_inputs()[0].shape[2])).astype(np.float32) * mask[..., None]
        with torch.no_grad():
            audios = model.model.get_audio_features(torch.tensor(mel), torch.tensor(mask))
        expected = audios.pooler_output[audios.attention_mask].numpy()
        (got,) = tower.run(["audio_features"], {"input_features": mel, "input_features_mask": mask})
        assert np.abs(got - expected).max() < LIMIT
        if "attention_context_right" not in audio:
            parts = streamed(tower, mel, mask, rng)
            assert np.abs(parts - got).max() < STREAMED
            assert np.abs(parts - expected).max() < LIMIT


def streamed(tower: Any, mel: Any, mask: Any, rng: Any) -> Any:
    """One clip in runs of 4 to 80 frames, state in, state out."""
    outputs = [value.name for value in tower.get_outputs()]
    found, at = [], 0
    state: dict[str, Any] = {}
    while at < mel.shape[1]:
        end = at + 4 * int(rng.integers(1, 20))
        feed = {"input_features": mel[:, at:end], "input_features_mask": mask[:, at:end]}
        tokens, *after = tower.run(outputs, feed | state)
        state = {name.replace("present", "past"): value for name, value in zip(outputs[1:], after, strict=True)}
        found.append(tokens)
        at = end
    return np.concatenate(found)
