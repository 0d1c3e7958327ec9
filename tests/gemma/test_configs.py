"""The same geometry from a config.json however it is written: as published, and as several transformers save it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic_configs import LAYOUTS, MODELS, assistant_config, config
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.geometry import AssistantGeometry, Geometry

SAVED = sorted((Path(__file__).parent / "configs").glob("*.json"))


def read(settings: dict[str, Any]) -> Geometry | AssistantGeometry:
    if settings["model_type"] == "gemma4_assistant":
        return AssistantGeometry.from_config(settings)
    return Geometry.from_config(settings)


def test_three_versions_of_four_models_are_here() -> None:
    assert len(SAVED) == 12


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_saved_by_transformers(path: Path) -> None:
    saved = json.loads(path.read_text())
    model, version = path.stem.rsplit("-", 1)
    assert saved["transformers_version"] == version
    published = assistant_config("e2b") if model == "e2b-assistant" else config(model)
    assert read(saved) == read(published)


@pytest.mark.parametrize("model", MODELS)
def test_both_layouts(model: str) -> None:
    old, new = (config(model, layout=layout) for layout in LAYOUTS)
    assert "global_head_dim" in old["text_config"]
    assert "per_layer_config" in new["text_config"]
    assert read(old) == read(new)
    if model.startswith("e"):
        assert read(assistant_config(model, layout="old")) == read(assistant_config(model, layout="new"))


def test_numbers_of_the_models() -> None:
    e4b, moe, large = (read(config(model)) for model in ("e4b", "26b-a4b", "31b"))
    assert isinstance(e4b, Geometry)
    assert isinstance(moe, Geometry)
    assert isinstance(large, Geometry)
    assert (e4b.text.num_own_layers, e4b.text.kv_sources[-2:], e4b.text.ple_dim) == (24, (22, 23), 256)
    assert e4b.text.kv_heads[:6] == (2,) * 6
    assert moe.text.kv_heads[:6] == (8, 8, 8, 8, 8, 2)
    assert moe.text.head_dims[:6] == (256, 256, 256, 256, 256, 512)
    assert (moe.text.ple_dim, moe.text.num_shared_layers, moe.audio) == (0, 0, None)
    assert large.vision
    assert (large.vision.hidden_size, large.vision.head_dim, large.vision.standardize) == (1152, 72, True)


@pytest.mark.parametrize("given", [{"all": {"head_dim": 512}}, [512]])
def test_per_layer_config_without_layer_numbers_is_refused(given: Any) -> None:
    settings = config("e2b", layout="new")
    settings["text_config"]["per_layer_config"] = given
    with pytest.raises(EdgeRuntimeError, match="per_layer_config must map"):
        Geometry.from_config(settings)
