"""A model for a command, with a bar on stderr while it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import edge_runtime
from edge_runtime.cli._bar import Bar

if TYPE_CHECKING:
    from edge_runtime.engine.model import Model

_STEPS = 1000


def load_model(path: str | None, bar: Bar | None = None, **options: Any) -> Model:
    """`edge_runtime.load`; `bar` shows how much of a GGUF file has been read.

    Raises:
        EdgeRuntimeError: As `edge_runtime.load`.
    """
    bar = bar or Bar()
    try:
        return edge_runtime.load(
            path, progress=lambda share: bar.show("of the model loaded", round(_STEPS * share), _STEPS), **options
        )
    finally:
        bar.clear()
