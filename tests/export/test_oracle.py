"""Graphs of random models against transformers; the worst difference is what the assertion shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.builtin import checkpoint_path
from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest, verify
from edge_runtime.export import export_checkpoint
from tests.export.decoding import Runner, session

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.oracle

LIMIT = 1e-3
CHUNKS = ([60], [13, 1, 1, 5, 16, 1, 1, 1, 16, 1, 1, 1, 1, 1], [1] * 25 + [7] * 5)
TEXTS: dict[str, dict[str, Any]] = {
    "e2b-like": {},
    "e4b-like": {"num_kv_shared_layers": 5, "use_double_wide_mlp": False, "num_attention_heads": 8},
    "31b-like": {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "num_kv_shared_layers": 0},
    "k_eq_v shared": {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "head_dim": 32, "global_head_dim": 64},
    "no per-layer inputs": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
    "one head, no softcap": {"num_key_value_heads": 1, "final_logit_softcapping": None, "num_kv_shared_layers": 6},
    "full rotation": {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 1.0, "rope_theta": 1e5},
        }
    },
    "odd sizes": {"hidden_size": 48, "intermediate_size": 40, "hidden_size_per_layer_input": 12, "vocab_size": 100},
}


@pytest.mark.parametrize("name", TEXTS)
def test_decoder(tmp_path: Path, name: str) -> None:
    import torch

    from tests.export.oracle import text_model

    model = text_model(tmp_path / "model", **TEXTS[name])
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="fp32")
    manifest = read_manifest(tmp_path / "bundle")
    ids = np.random.default_rng(1).integers(0, 100, 60)
    with torch.no_grad():
        expected = model(torch.tensor(ids)[None]).logits[0].numpy()
    for chunks in CHUNKS:
        runner, at = Runner(tmp_path / "bundle", manifest, chunk=max(chunks)), 0
        for size in chunks:
            keep = max(1, size // 2)
            logits, _ = runner.step(ids[at : at + size], keep)
            at += size
            assert np.abs(logits - expected[at - keep : at]).max() < LIMIT


def test_int4_decoder_follows_the_rounded_weights(tmp_path: Path) -> None:
    from tests.export.oracle import text_model

    text_model(tmp_path / "model")
    bundles = [tmp_path / "fp32", tmp_path / "int4"]
    for bundle in bundles:
        export_checkpoint(tmp_path / "model", bundle, recipe=bundle.name)
    ids = np.random.default_rng(1).integers(0, 128, 40)
    fp32, int4 = (Runner(b, read_manifest(b), chunk=40).step(ids, 40)[0] for b in bundles)
    assert np.corrcoef(fp32.reshape(-1), int4.reshape(-1))[0, 1] > 0.9


VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
VISION |= {"patch_size": 4, "position_embedding_size": 40}
AUDIO: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "output_proj_dims": 48}
TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "clipped": (
        {"num_key_value_heads": 4, "use_clipped_linears": True},
        {"use_clipped_linears": True},
        0.8,
    ),
    "unbounded": (
        {"num_key_value_heads": 4, "use_clipped_linears": True},
        {"use_clipped_linears": True, "attention_chunk_size": 8, "attention_context_left": 9},
        np.inf,
    ),
    "plain": (
        {"num_key_value_heads": 2, "standardize": True, "pooling_kernel_size": 2, "rms_norm_eps": 1e-3},
        {"use_clipped_linears": False, "conv_kernel_size": 3, "rms_norm_eps": 1e-3, "attention_context_right": 2},
        np.inf,
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
    for columns, rows in ((6, 6), (12, 18), (18, 6)):
        pixels = rng.random((columns * rows, 48), np.float32)
        grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2).astype(np.int64)
        with torch.no_grad():
            images = model.model.get_image_features(torch.tensor(pixels)[None], torch.tensor(grid)[None])
        (got,) = tower.run(None, {"pixel_values": pixels, "pixel_position_ids": grid})
        assert np.abs(got - images.pooler_output[0].numpy()).max() < LIMIT
    tower = session(tmp_path / "bundle" / names.AUDIO)
    for frames, sound in ((1, 1), (5, 5), (97, 97), (130, 90), (192, 192)):
        mask = (np.arange(frames) < sound)[None]
        mel = rng.standard_normal((1, frames, 128)).astype(np.float32) * mask[..., None]
        with torch.no_grad():
            audios = model.model.get_audio_features(torch.tensor(mel), torch.tensor(mask))
        (got,) = tower.run(None, {"input_features": mel, "input_features_mask": mask})
        assert np.abs(got - audios.pooler_output[audios.attention_mask].numpy()).max() < LIMIT


@pytest.mark.parametrize("recipe", ["fp32", "int4"])
@pytest.mark.parametrize(
    ("ordered", "changes"),
    [
        (False, {}),
        (True, {}),
        (False, {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "global_head_dim": 64}),
    ],
)
def test_drafter(tmp_path: Path, recipe: str, ordered: bool, changes: dict[str, Any]) -> None:
    """Guesses on a random target's cache, in chunks that leave the window's buffer full."""
    import torch

    from tests.export.oracle import drafter_model, text_model

    target = text_model(tmp_path / "model", **changes)
    drafter = drafter_model(tmp_path / "drafter", 1, ordered=ordered, **changes)
    # The target stays exact, so that only the drafter is measured.
    export_checkpoint(tmp_path / "model", tmp_path / "exact", recipe="fp32", drafter=tmp_path / "drafter")
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe=recipe, drafter=tmp_path / "drafter")
    assert verify(tmp_path / "bundle") == []
    manifest = read_manifest(tmp_path / "exact")
    runner = Runner(tmp_path / "exact", manifest, chunk=16)
    ids = np.random.default_rng(1).integers(0, 128, 31)
    for at in (0, 10, 20):
        _, hidden = runner.step(ids[at : at + 10])
    text = runner.text
    sources = {kind: text.last_own_layer(kind) for kind in ("sliding_attention", "full_attention")}
    graph = session(tmp_path / "bundle" / names.DRAFTER)
    with torch.no_grad():
        out = target(torch.tensor(ids[:30])[None], output_hidden_states=True, return_shared_kv_states=True)
        states = dict(out.shared_kv_states)
        embeds = torch.cat([target.model.embed_tokens(torch.tensor(ids[30:])[None]), out.hidden_states[-1][:, -1:]], -1)
    assert np.abs(hidden[-1] - out.hidden_states[-1][0, -1].numpy()).max() < LIMIT
    feed: dict[str, Any] = {"position_ids": np.array([[30]], np.int64), **runner.lengths(), **runner.rope}
    for kind, layer in sources.items():
        for part in ("key", "value"):
            feed[f"shared_kv.{kind}.{part}"] = runner.caches[layer, part].numpy()
    given = embeds
    for _ in range(3):
        with torch.no_grad():
            expected = drafter(inputs_embeds=given, position_ids=torch.tensor([[30]]), shared_kv_states=states)
        logits, state = graph.run(["logits", "projected_state"], {**feed, "inputs_embeds": given.numpy()})
        if recipe == "fp32":
            assert np.abs(state - expected.last_hidden_state.numpy()).max() < LIMIT
            assert np.abs(logits - expected.logits.numpy()).max() < LIMIT
        else:
            assert np.corrcoef(state.reshape(-1), expected.last_hidden_state.numpy().reshape(-1))[0, 1] > 0.9
        given = torch.cat([given[..., :64], expected.last_hidden_state], -1)


def test_built_in_drafter_is_what_transformers_loads(tmp_path: Path) -> None:
    """The shipped drafter's graph equals transformers' module on one made-up cache."""
    import torch
    from transformers import Gemma4AssistantForCausalLM, Gemma4ForConditionalGeneration

    import tests.export.oracle  # noqa: F401 - mends transformers' own class for decoders without keys

    checkpoint = checkpoint_path()
    export_checkpoint(checkpoint, tmp_path / "bundle", recipe="fp32", drafter=checkpoint / "drafter")
    manifest = read_manifest(tmp_path / "bundle")
    runner = Runner(tmp_path / "bundle", manifest, chunk=16)
    ids = np.random.default_rng(4).integers(30, 2000, 13)
    _, hidden = runner.step(ids[:12])
    sources = {kind: runner.text.last_own_layer(kind) for kind in ("sliding_attention", "full_attention")}
    feed: dict[str, Any] = {"position_ids": np.array([[12]], np.int64), **runner.lengths(), **runner.rope}
    for kind, layer in sources.items():
        for part in ("key", "value"):
            feed[f"shared_kv.{kind}.{part}"] = runner.caches[layer, part].numpy()
    given = np.concatenate([np.zeros((1, 1, hidden.shape[-1]), np.float32), hidden[None, -1:]], -1)
    logits, state = session(tmp_path / "bundle" / names.DRAFTER).run(
        ["logits", "projected_state"], {**feed, "inputs_embeds": given}
    )
    drafter = Gemma4AssistantForCausalLM.from_pretrained(checkpoint / "drafter", dtype=torch.float32).eval()
    target = Gemma4ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        out = target(input_ids=torch.tensor(ids[:12])[None], return_shared_kv_states=True)
        expected = drafter(
            inputs_embeds=torch.from_numpy(given),
            position_ids=torch.tensor([[12]]),
            shared_kv_states=dict(out.shared_kv_states),
        )
    assert np.abs(state - expected.last_hidden_state.numpy()).max() < 1e-3
    assert np.abs(logits - expected.logits.numpy()).max() < 1e-3
