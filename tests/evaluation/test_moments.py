"""Moments from a tiny model's bundle, and exports that use them."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import numpy as np
import pytest

from edge_runtime.builtin import checkpoint_path
from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest, verify
from edge_runtime.cli.main import main
from edge_runtime.evaluation.exchanges import read_exchanges
from edge_runtime.evaluation.kld import BundleSource
from edge_runtime.evaluation.moments import collect
from edge_runtime.export import export_checkpoint
from edge_runtime.export.safetensors import Checkpoint
from tests.export import tiny
from tests.export.reference import rms
from tests.export.stored import rounded_matrices

NORM = "layers.0.input_layernorm.weight"
SIZES: dict[str, Any] = {"vocab_size": 2048, "vocab_size_per_layer_input": 2048, "eos_token_id": [1, 6]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    tiny.write_checkpoint(folder / "tiny", intermediate_size=512, **SIZES)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(checkpoint_path() / name, folder / "tiny" / name)
    (folder / "prompts" / "text").mkdir(parents=True)
    cases = [{"messages": [{"role": "user", "content": text}], "answer": text[::-1]} for text in ("Hello", "What now?")]
    lines = [json.dumps({**case, "group": "a"}) + "\n" for case in cases]
    (folder / "prompts" / "text" / "cases.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def prompts(model):
    return read_exchanges(model / "prompts")


@pytest.mark.parametrize("recipe", ["fp32", "int4"])
def test_they_are_those_of_what_the_first_matrix_multiplies(model, prompts, tmp_path, recipe):
    export_checkpoint(model / "tiny", tmp_path / "bundle", recipe=recipe)
    assert collect(tmp_path / "bundle", prompts, tmp_path / "moments.npz") == 2
    assert verify(tmp_path / "bundle") == []  # it still runs
    with BundleSource(tmp_path / "bundle") as source:
        readings = [source.read(prompt) for prompt in prompts]
    ids = [np.array([*prompt.ids, *answer[:-1]]) for prompt, _, answer in readings]
    with Checkpoint(model / "tiny") as checkpoint:
        prefix = next(name for name in checkpoint.names() if name.endswith("embed_tokens.weight"))
        base = prefix.removesuffix("embed_tokens.weight")
        table, norm = (checkpoint.get(base + name).read() for name in ("embed_tokens.weight", NORM))
    x = rms(table[np.concatenate(ids)] * math.sqrt(table.shape[1])) * norm
    found = np.load(tmp_path / "moments.npz")
    name = next(name for name in found.files if "layers.0.self_attn" in name and "q_proj" in name)
    run = found[name].shape[1]
    right = np.stack([x[:, start : start + run].T @ x[:, start : start + run] for start in range(0, x.shape[1], run)])
    # The int4 bundle's rows are rounded.
    assert np.abs(found[name] - right).max() < (1e-3 if recipe == "fp32" else 0.2) * np.abs(right).max()
    graph = {name for name, (form, _) in rounded_matrices(tmp_path / "bundle" / names.DECODER).items()}
    assert recipe == "fp32" or graph <= set(found.files)


def test_export_calibrates(model, tmp_path, capsys):
    words = ["export", str(model / "tiny"), "--json"]
    assert main([*words, str(tmp_path / "plain")]) == 0
    assert main([*words, str(tmp_path / "bundle"), "--calibrate", "--prompts", str(model / "prompts")]) == 0
    plain, report = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert verify(tmp_path / "bundle") == []
    assert read_manifest(tmp_path / "bundle").source == {"checkpoint": "tiny", "calibration": "2 prompts"}
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "bundle"}
    assert report["sizes"] == plain["sizes"]
    pairs = zip(report["tensors"], plain["tensors"], strict=True)
    assert all(a["name"] == b["name"] and a["relative"] > b["relative"] for a, b in pairs)


def test_what_makes_no_sense_is_said(model, tmp_path, capsys):
    words = ["export", str(model / "tiny"), str(tmp_path / "bundle")]
    assert main([*words, "--prompts", str(model / "prompts")]) == 2
    assert "--prompts are for --calibrate" in capsys.readouterr().err
    assert main([*words, "--calibrate", "--recipe", "int8"]) == 2
    assert "--calibrate is for recipe int4, not int8: no other was found better for it" in capsys.readouterr().err
    assert main([*words, "--calibrate", "--max-memory", "4G"]) == 2
    assert "--max-memory is an export's, not the model's that --calibrate runs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
