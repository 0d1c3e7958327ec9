from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks import synthetic
from benchmarks.synthetic_configs import MODELS, assistant_config, config
from benchmarks.synthetic_shapes import shapes, unused
from benchmarks.synthetic_tokenizer import CONTROL, write_tokenizer
from edge_runtime.bundle.manifest import verify
from edge_runtime.export import export_checkpoint
from edge_runtime.export.safetensors import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def count(settings: dict[str, Any]) -> int:
    return sum(math.prod(shape) for shape in shapes(settings).values())


def test_parameter_counts() -> None:
    # As published: 5.1 B with embeddings, 8 B, 26 B, 31 B; a drafter of 78 M.
    assert count(config("e2b")) == 5_123_178_979
    assert round(count(config("e4b")) / 1e9, 1) == 8.0
    assert round(count(config("26b-a4b")) / 1e9) == 26
    assert round(count(config("31b")) / 1e9) == 31
    assert round(count(assistant_config("e2b")) / 1e6) == 78


def small(**changes: Any) -> dict[str, Any]:
    """E2B's config with every size cut down."""
    settings = config("e2b", layers=6)
    settings["text_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 16,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 32,
        "vocab_size": 600,
        "vocab_size_per_layer_input": 600,
    } | changes
    settings["vision_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "position_embedding_size": 20,
    }
    settings["audio_config"] |= {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings["audio_config"]["output_proj_dims"] = 64
    return settings


def test_written_checkpoint_is_read_and_exported(tmp_path: Path) -> None:
    settings = small()
    total = synthetic.write(tmp_path / "model", settings, shard_bytes=100_000)
    write_tokenizer(tmp_path / "model", "small")
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    assert len(set(index["weight_map"].values())) > 3
    with Checkpoint(tmp_path / "model") as checkpoint:
        assert {name: checkpoint.get(name).shape for name in checkpoint.names()} == shapes(settings)
        assert checkpoint.get("model.language_model.layers.5.layer_scalar").read()[0] not in {0, 1}
        low, high = (
            float(checkpoint.get(f"model.vision_tower.encoder.layers.0.mlp.up_proj.{bound}").read())
            for bound in ("input_min", "input_max")
        )
        assert -5 < low < -3 < 3 < high < 5
        table = checkpoint.get("model.language_model.embed_tokens_per_layer.weight").read()
    assert 0.019 < table.std() < 0.021
    assert len(np.unique(table, axis=0)) == len(table)
    export_checkpoint(tmp_path / "model", tmp_path / "bundle")
    assert verify(tmp_path / "bundle") == []


def test_seed_decides_everything(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthetic.write(tmp_path / name, small(), seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert len(a) == len(c)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.main(["e2b-assistant", str(tmp_path / "drafter")])
    assert "0.16 GB" in capsys.readouterr().out
    with Checkpoint(tmp_path / "drafter") as checkpoint:
        order = checkpoint.get("masked_embedding.token_ordering").integers()
    assert sorted(order) == list(range(262_144))
    with pytest.raises(SystemExit, match="exists"):
        synthetic.main(["e2b-assistant", str(tmp_path / "drafter")])


@pytest.mark.parametrize("layers", range(1, 12))
def test_fewer_layers_are_a_sound_model(layers: int) -> None:
    for model in MODELS:
        text = config(model, layers=layers)["text_config"]
        own = layers - text["num_kv_shared_layers"]
        assert len(text["layer_types"]) == text["num_hidden_layers"] == layers
        assert text["layer_types"][-1] == "full_attention"
        assert set(text["layer_types"][:own]) == set(text["layer_types"])


def test_small_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "small")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = '<bos><|turn>user\nGrüße, 世界!<|image|><|"|><turn|>\n'
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids[:2] == [2, 105]
    assert {258880, 52, 106} < set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(tokenizer.token_to_id(token) == number for number, token in CONTROL.items())


def test_control_tokens_take_the_place_of_unused_ones(tmp_path: Path) -> None:
    package = tmp_path / "package" / "models"
    package.mkdir(parents=True)
    vocabulary = {f"<unused{i}>" if i in CONTROL else f"word{i}": i for i in range(262_144)}
    old = {"id": 105, "content": "<start_of_turn>", "special": True}
    beyond = {"id": 262_144, "content": "<image_soft_token>", "special": True}
    data = {
        "version": "1.0",
        "added_tokens": [old, beyond],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    (package / "tokenizer.json").write_text(json.dumps(data))
    write_tokenizer(tmp_path, str(package.parent))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 262_144
    assert tokenizer.id_to_token(7) == "word7"
    ids = tokenizer.encode("<|turn><|image|><turn|>", add_special_tokens=False).ids
    assert ids == [105, 258880, 106]


@pytest.mark.oracle
@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("model", [*MODELS, "e2b-assistant", "e4b-assistant"])
def test_names_and_shapes_are_those_of_transformers(model: str, layout: str) -> None:
    import torch
    from transformers import (
        Gemma4AssistantConfig,
        Gemma4AssistantForCausalLM,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
    )

    import tests.export.oracle  # mends a refusal of transformers' own drafter  # noqa: F401

    kind: Any = Gemma4ForConditionalGeneration
    if model.endswith("-assistant"):
        settings = assistant_config(model.removesuffix("-assistant"), layout=layout)
        read, kind = Gemma4AssistantConfig.from_dict(settings), Gemma4AssistantForCausalLM
    else:
        settings = config(model, layout=layout)
        read = Gemma4Config.from_dict(settings)
    with torch.device("meta"):
        state = kind(read).state_dict()
    # The head is tied to the embedding; checkpoints hold it once.
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items() if name != "lm_head.weight"}
    assert {name: shape for name, shape in shapes(settings).items() if name not in unused(settings)} == wanted
