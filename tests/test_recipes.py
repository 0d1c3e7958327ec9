"""The recipes that ship, and what is said about broken ones."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from benchmarks.synthetic_configs import assistant_config, config
from benchmarks.synthetic_shapes import shapes, unused
from edge_runtime import recipes
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.recipes import FILE, HUB_ID, known, read

ROOT = Path(__file__).parents[1]
TOKENIZER_BYTES = 32e6


def test_every_folder_of_models_has_a_recipe_but_the_built_in_model():
    folders = {path.name for path in (ROOT / "models").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {recipe.name for recipe in known()} == folders - {"nano"}
    assert {recipe.name for recipe in known()} >= {"gemma-4-e2b", "gemma-4-e4b", "gemma-4-26b-a4b-gguf"}


def test_recipes_hang_together():
    by_name = {recipe.name: recipe for recipe in known()}
    assert len({recipe.source for recipe in known()}) == len(by_name)
    for recipe in by_name.values():
        assert HUB_ID.fullmatch(recipe.source)
        assert recipe.revision == "main" or re.fullmatch(r"[0-9a-f]{40}", recipe.revision)
        assert recipe.licence == "Apache-2.0"
        assert recipe.licence_url.startswith("https://")
        if recipe.kind == "onnx":
            assert by_name[recipe.drafter].kind == "drafter"
            assert recipe.bundle_bytes < recipe.download_bytes
            assert recipe.bundle_bytes < recipe.ram_gb * 1e9
        if recipe.kind == "gguf":
            assert recipe.file.endswith(".gguf")
            assert recipe.download_bytes < recipe.ram_gb * 1.2e9


@pytest.mark.parametrize("model", ["e2b", "e4b", "26b-a4b", "31b"])
def test_sizes_are_those_of_the_geometry(model):
    whole = config(model)
    values = {name: math.prod(shape) for name, shape in shapes(whole).items()}
    recipe = recipes.get(f"gemma-4-{model}")
    assert recipe.download_bytes == pytest.approx(2 * sum(values.values()) + TOKENIZER_BYTES, rel=1e-3)
    needed = {name: count for name, count in values.items() if name not in unused(whole)}
    table = sum(count for name, count in needed.items() if "embed_tokens_per_layer" in name)
    towers = sum(count for name, count in needed.items() if "vision" in name or "audio" in name)
    decoder = sum(needed.values()) - table - towers
    drafter = sum(math.prod(shape) for shape in shapes(assistant_config(model)).values())
    # Bits of a weight and its part of a scale: int4 in blocks of 32, the table's rows, int8.
    bundle = (4.25 * (decoder + drafter) + 4.2 * table + 8.1 * towers) / 8 + TOKENIZER_BYTES / 2
    assert recipe.bundle_bytes == pytest.approx(bundle, rel=0.04)  # E4B's rows are padded, so that few lie in two pages
    if model in {"e2b", "e4b"}:
        size = recipes.get(recipe.drafter).download_bytes
        assert size == pytest.approx(2 * drafter + TOKENIZER_BYTES, rel=0.01)


def test_a_recipe_is_found_by_name():
    assert recipes.get("Gemma-4-E2B") is not None
    assert recipes.find("nothing") is None
    with pytest.raises(EdgeRuntimeError, match=r"no recipe 'gemma4-e4b': did you mean gemma-4-e4b\?"):
        recipes.get("gemma4-e4b")
    with pytest.raises(EdgeRuntimeError, match="`edge-runtime models` lists them"):
        recipes.get("zzz")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('title = "Gemma 4 E2B"', "", "lacks title"),
        ("ram_gb = 4", "", "lacks ram_gb"),
        ("ram_gb = 4", 'ram_gb = "4"', "ram_gb must be a number, not '4'"),
        ('recipe = "int4"', "recipe = 4", "recipe must be a text, not 4"),
        ('kind = "onnx"', 'kind = "tflite"', "kind must be onnx, gguf, drafter, not 'tflite'"),
        ('source = "google/gemma-4-E2B-it"', 'source = "gemma"', "source must be a hub id, owner/name, not 'gemma'"),
        ('revision = "main"', "revision = main", "cannot be read"),
        ('revision = "main"', 'revision = "main"\ncolour = "blue"', "unknown key colour"),
    ],
)
def test_a_broken_recipe_is_named(tmp_path, old, new, expected):
    text = (ROOT / "models" / "gemma-4-e2b" / FILE).read_text()
    assert text.count(old) == 1
    path = tmp_path / "mine" / FILE
    path.parent.mkdir()
    path.write_text(text.replace(old, new))
    with pytest.raises(EdgeRuntimeError) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert expected in str(raised.value)
