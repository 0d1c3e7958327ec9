"""Which model of those on this box is the best that its free memory takes: `model = "auto"`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import builtin, inventory
from edge_runtime.machine import memory, readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.machine import Memory

log = logging.getLogger(__name__)

NAME = "auto"
SHARE = 0.9
"""Of the free memory: other programs want some too."""


def choose(folders: Sequence[Path] = (), have: Memory | None = None) -> Path | None:
    """The largest bundle or GGUF that fits what is free, None for the built-in model; the choice goes to the log.

    Args:
        folders: Where to look, beside the working directory and the caches.
        have: Memory; None: that of this box now.
    """
    have = have or memory()
    places = [*folders, Path(), builtin.cache_path(), *inventory.gguf_folders()]
    found = [model for model in inventory.look(places) if not model.problem and not builtin.is_own_bundle(model.path)]
    fitting = [model for model in found if model.memory <= SHARE * have.available]
    best = max(fitting, key=lambda model: model.size, default=None)
    for model in found:
        fits = "chosen" if model is best else "fits" if model in fitting else "too large"
        log.info("auto: %s (%s) needs %s: %s", model.path, model.kind, readable(model.memory), fits)
    free = readable(have.available)
    log.info("auto: %s free, so %s answers", free, best.path if best else "the built-in model")
    return best.path if best else None
