"""Drafters of random models, and the built-in one, against transformers on one cache."""

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
SLIDING, FULL = "sliding_attention", "full_attention"

# What the target and the drafter share, and what the drafter has of its own.
DRAFTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain head": ({}, {"ordered": False}),
    "ordered head": ({}, {"ordered": True}),
    "all clusters": ({}, {"ordered": True, "top_k": 16}),
    "one cluster": ({}, {"ordered": True, "top_k": 1, "num_attention_heads": 8, "centroids": 32}),
    "k_eq_v": (
        {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "global_head_dim": 64},
        {"ordered": False},
    ),
    "odd sizes": (
        {"vocab_size": 105, "num_key_value_heads": 1, "head_dim": 48, "global_head_dim": 80},
        {"ordered": True, "centroids": 15, "top_k": 4, "hidden_size": 22, "intermediate_size": 37}
        | {"num_attention_heads": 3},
    ),
    "two layers, window of the model's width": (
        {"sliding_window": 512},
        {"ordered": True, "num_hidden_layers": 2, "layer_types": [SLIDING, FULL]},
    ),
}


@pytest.mark.parametrize("recipe", ["fp32", "int4"])
@pytest.mark.parametrize("name", DRAFTERS)
def test_drafter(tmp_path: Path, recipe: str, name: str) -> None:
    """Guesses on a random target's cache, in chunks that leave the window's buffer full."""
    import torch

    from tests.export.oracle import drafter_model, text_model

    shared, own = DRAFTERS[name]
    target = text_model(tmp_path / "model", **shared)
    drafter = drafter_model(tmp_path / "drafter", 1, **shared | own)
    # The target stays exact, so that only the drafter is measured.
    export_checkpoint(tmp_path / "model", tmp_path / "exact", recipe="fp32", drafter=tmp_path / "drafter")
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe=recipe, drafter=tmp_path / "drafter")
    assert verify(tmp_path / "bundle") == []
    manifest = read_manifest(tmp_path / "exact")
    runner = Runner(tmp_path / "exact", manifest, chunk=16)
    ids = np.random.default_rng(1).integers(0, 105, 31)
    for at in (0, 10, 20):
        _, hidden = runner.step(ids[at : at + 10])
    text = runner.text
    sources = {kind: text.last_own_layer(kind) for kind in (SLIDING, FULL)}
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
            assert np.corrcoef(state.reshape(-1), expected.last_hidden_state.numpy().reshape(-1))[0, 1] > 0.8
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
    sources = {kind: runner.text.last_own_layer(kind) for kind in (SLIDING, FULL)}
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
