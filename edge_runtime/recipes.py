"""The released checkpoints that are known by name: where each is, how it is exported, which box it fits.

A recipe is `models/<name>/recipe.toml`; the folder's name is its name. `revision` is a branch, a tag or a commit: the
commit that a branch stands for is looked up when the checkpoint is fetched, and kept in the bundle's manifest.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_runtime.errors import EdgeRuntimeError

FILE = "recipe.toml"
HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
"""A model on the hub, `owner/name`, and the revision that is wanted, if any."""

_PACKAGE = Path(__file__).parent
_KINDS = {
    "onnx": ("recipe", "bundle_bytes", "ram_gb"),
    "gguf": ("file", "ram_gb"),
    "drafter": (),
}
"""Each kind, and the keys that it needs beyond those that all have."""


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """One recipe.toml."""

    name: str
    title: str
    kind: Literal["onnx", "gguf", "drafter"]
    """What becomes of it: a bundle, nothing (a GGUF runs as it is), or a part of its model's bundle."""
    source: str
    """Its id on the hub, `owner/name`."""
    revision: str
    """Branch, tag, or commit of 40 hex digits."""
    licence: str
    """SPDX identifier."""
    licence_url: str
    download_bytes: int
    ram_gb: int = 0
    """Memory of the smallest box that it is meant for, in units of 1e9 bytes."""
    recipe: str = ""
    """How `export` rounds it."""
    bundle_bytes: int = 0
    """Of the bundle that `recipe` gives."""
    drafter: str = ""
    """Name of its drafter's recipe."""
    file: str = ""
    """The GGUF to fetch."""
    projector: str = ""
    """The GGUF of its image and audio towers."""


def known() -> list[ModelRecipe]:
    """All recipes, by name.

    Raises:
        EdgeRuntimeError: one of them is broken.
    """
    for folder in (_PACKAGE / "models", _PACKAGE.parent / "models"):
        if found := sorted(folder.glob(f"*/{FILE}")):
            return [read(path) for path in found]
    return []


def find(name: str) -> ModelRecipe | None:
    """The recipe called `name` (upper or lower case), if there is one."""
    return next((recipe for recipe in known() if recipe.name == name.lower()), None)


def get(name: str) -> ModelRecipe:
    """The recipe called `name` (upper or lower case).

    Raises:
        EdgeRuntimeError: there is none.
    """
    if recipe := find(name):
        return recipe
    raise EdgeRuntimeError(f"there is no recipe {name!r}: {hint(name)}")


def hint(name: str) -> str:
    """What to say to someone who asked for a recipe that does not exist."""
    close = difflib.get_close_matches(name.lower(), [recipe.name for recipe in known()], n=1)
    return f"did you mean {close[0]}?" if close else "`edge-runtime models` lists them"


def read(path: Path) -> ModelRecipe:
    """Reads one recipe.toml.

    Raises:
        EdgeRuntimeError: it is not TOML, a key is missing, unknown or of the wrong type, or a value makes no sense.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EdgeRuntimeError(f"{path} cannot be read: {error}") from None
    fields = {field.name: field for field in dataclasses.fields(ModelRecipe) if field.name != "name"}
    types = typing.get_type_hints(ModelRecipe)
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    required += _KINDS.get(data.get("kind", ""), ())
    if missing := [name for name in required if name not in data]:
        raise EdgeRuntimeError(f"{path} lacks {', '.join(missing)}")
    for key, value in data.items():
        if key not in fields:
            raise EdgeRuntimeError(f"{path}: unknown key {key}")
        wanted = int if types[key] is int else str
        if type(value) is not wanted or not value:
            raise EdgeRuntimeError(f"{path}: {key} must be a {'number' if wanted is int else 'text'}, not {value!r}")
    if data["kind"] not in _KINDS:
        raise EdgeRuntimeError(f"{path}: kind must be {', '.join(_KINDS)}, not {data['kind']!r}")
    if not HUB_ID.fullmatch(data["source"]) or "@" in data["source"]:
        raise EdgeRuntimeError(f"{path}: source must be a hub id, owner/name, not {data['source']!r}")
    return ModelRecipe(name=path.parent.name, **data)
