"""edge-runtime: Gemma 4 on the device, offline.

Example:
    import edge_runtime

    model = edge_runtime.load()  # the built-in model; or a bundle folder
    for piece in model.chat([{"role": "user", "content": "What time does the museum open?"}]):
        print(piece.text, end="")
    print(model.transcribe("voice.wav").text)
"""

from __future__ import annotations

import os

# Before anything can import onnxruntime or huggingface_hub: nothing here reports anything to anyone.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from edge_runtime.engine.loading import load
    from edge_runtime.engine.model import Model
    from edge_runtime.engine.protocol import Piece, Transcript

__all__ = ["EdgeRuntimeError", "Model", "Piece", "Transcript", "load"]

_HOMES = {
    "Model": "edge_runtime.engine.model",
    "load": "edge_runtime.engine.loading",
    "Piece": "edge_runtime.engine.protocol",
    "Transcript": "edge_runtime.engine.protocol",
}


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, so that `import edge_runtime` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
