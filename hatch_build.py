"""Build hook: carries the built-in model, its prompts and the recipes in the wheel, under edge_runtime/models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CHECKPOINT = Path("models/nano/checkpoint")
HELDOUT = Path("models/nano/heldout")


class ModelHook(BuildHookInterface):  # type: ignore[type-arg, misc, unused-ignore]
    """Adds what lies outside the package to the files of the wheel, the built-in model where there is one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds; an editable install reads the checkout instead."""
        if version == "editable":
            return
        root, include = Path(self.root), build_data["force_include"]
        for recipe in root.glob("models/*/recipe.toml"):
            include[str(recipe)] = f"edge_runtime/models/{recipe.parent.name}/{recipe.name}"
        if (root / CHECKPOINT / "config.json").is_file():
            include[str(root / CHECKPOINT)] = "edge_runtime/models/nano"
            include[str(root / HELDOUT)] = "edge_runtime/models/nano-heldout"
