"""Build hook: carries the built-in model in the wheel, as edge_runtime/models/nano."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CHECKPOINT = Path("models/nano/checkpoint")


class ModelHook(BuildHookInterface):  # type: ignore[type-arg, misc, unused-ignore]
    """Adds the checkpoint folder, where there is one, to the files of the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds; an editable install reads the checkout instead."""
        checkpoint = Path(self.root) / CHECKPOINT
        if version != "editable" and (checkpoint / "config.json").is_file():
            build_data["force_include"][str(checkpoint)] = "edge_runtime/models/nano"
