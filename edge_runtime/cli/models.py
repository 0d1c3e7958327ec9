"""`edge-runtime models`: what is on this box, what could be, and what fits its memory."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from edge_runtime.inventory import Found
    from edge_runtime.machine import Memory
    from edge_runtime.recipes import ModelRecipe

HELP = (
    "Lists the models on this box (bundles and GGUF files: here, in DIR, in the settings' folders and in the caches), "
    "the recipes that can be fetched and exported by name, and which of them fit this box's memory."
)
EXAMPLE = "edge-runtime models --dir /srv/models"

_BOX_SHARE = 0.9  # a box sold as 4 GB reports about 10 % less


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument("--dir", metavar="DIR", type=Path, action="append", default=[], help="look here too")
    parser.add_argument("--fetch", metavar="NAME", help="fetch what a recipe names: a checkpoint or a GGUF")
    parser.add_argument("--json", action="store_true", help='print {"memory", "models", "recipes"} or {"fetched"}')


def run(args: argparse.Namespace) -> int:
    """Lists, or fetches."""
    if args.fetch:
        return _fetch(args.fetch, as_json=args.json)
    from edge_runtime import builtin, inventory, recipes
    from edge_runtime.machine import memory

    for folder in args.dir:
        if not folder.is_dir():
            raise EdgeRuntimeError(f"{folder} is no folder")
    have, models, known = memory(), _built_in(), recipes.known()
    found = inventory.look([*args.dir, Path(), *_settings_folders(), *inventory.gguf_folders()])
    models += [model for model in found if not builtin.is_own_bundle(model.path)]
    if args.json:
        print(json.dumps(_to_json(have, models, known)))
    else:
        print("\n".join([*_models_table(have, models), "", *_recipes_table(have, models, known)]))
    return 0


def _fetch(name: str, *, as_json: bool) -> int:
    from edge_runtime.cli._bar import Bar
    from edge_runtime.export.source import fetch_model
    from edge_runtime.recipes import get

    bar = Bar()
    try:
        paths = fetch_model(name, progress=bar.show, note=bar.note)
    finally:
        bar.clear()
    if as_json:
        print(json.dumps({"fetched": [str(path) for path in paths]}))
    else:
        print("\n".join(map(str, paths)))
        if get(name.partition("@")[0]).kind == "onnx":
            print(f"next: edge-runtime export {name} BUNDLE", file=sys.stderr)
    return 0


def _built_in() -> list[Found]:
    """The model that came with the program; its bundle is made at the first use."""
    from edge_runtime import builtin
    from edge_runtime.inventory import Found

    try:
        folder = builtin.checkpoint_path()
    except EdgeRuntimeError:
        return []
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return [Found(builtin.NAME, folder, "built in", size, 0)]


def _settings_folders() -> list[Path]:
    """Where the daemon's model is, and where it may write."""
    from edge_runtime import builtin, settings

    try:
        wanted = settings.load()
    except EdgeRuntimeError as error:
        print(f"edge-runtime: {error}", file=sys.stderr)
        return []
    model, state = wanted.model.path, wanted.storage.state_dir
    return [folder for folder in (model and model.parent, state, builtin.cache_path()) if folder]


def _fits(needed: int, have: int) -> str:
    return "yes" if needed <= have else "no"


def _models_table(have: Memory, models: Sequence[Found]) -> list[str]:
    from edge_runtime.machine import readable

    rows = [("NAME", "KIND", "SIZE", "NEEDS", "FITS", "WHERE")]
    for model in models:
        if model.problem:
            rows.append((model.name, "-", "-", "-", "-", model.problem))
            continue
        needs = readable(model.memory) if model.memory else "-"
        fits = _fits(model.memory, have.available)
        rows.append((model.name, model.kind, readable(model.size), needs, fits, str(model.path)))
    title = f"On this box ({readable(have.available)} of {readable(have.total)} memory free):"
    return [title, *_aligned(rows)]


def _recipes_table(have: Memory, models: Sequence[Found], known: Sequence[ModelRecipe]) -> list[str]:
    """Drafters come with their models and are left out."""
    from edge_runtime.machine import readable

    here = {model.source for model in models}
    rows = [("NAME", "KIND", "FETCH", "BUNDLE", "BOX", "FITS", "LICENCE", "MODEL")]
    for recipe in known:
        if recipe.kind == "drafter":
            continue
        bundle = readable(recipe.bundle_bytes) if recipe.bundle_bytes else "-"
        fits = _fits(int(_BOX_SHARE * recipe.ram_gb * 1e9), have.total)
        title = f"{recipe.title} (exported)" if recipe.source in here else recipe.title
        size = readable(recipe.download_bytes)
        rows.append((recipe.name, recipe.kind, size, bundle, f"{recipe.ram_gb} GB", fits, recipe.licence, title))
    title = "Known by name (edge-runtime export NAME BUNDLE; of the kind gguf: edge-runtime models --fetch NAME):"
    return [title, *_aligned(rows)]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _to_json(have: Memory, models: Sequence[Found], known: Sequence[ModelRecipe]) -> dict[str, Any]:
    return {
        "memory": {"total_bytes": have.total, "available_bytes": have.available},
        "models": [
            {
                "name": model.name,
                "path": str(model.path.resolve()),
                "kind": model.kind,
                "size_bytes": model.size,
                "memory_bytes": model.memory,
                "fits": not model.problem and model.memory <= have.available,
                "source": model.source,
                "problem": model.problem or None,
            }
            for model in models
        ],
        "recipes": [
            dataclasses.asdict(recipe) | {"fits": _BOX_SHARE * recipe.ram_gb * 1e9 <= have.total} for recipe in known
        ],
    }
