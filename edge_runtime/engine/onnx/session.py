"""ONNX Runtime sessions, set up for a small shared device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from pathlib import Path


def default_threads() -> int:
    """The cores this process may use, four at most: more rarely help a memory-bound decoder."""
    return max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def open_session(path: Path, threads: int) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Raises:
        EdgeRuntimeError: The graph is missing or damaged.
    """
    import onnxruntime as ort  # noqa: PLC0415 - takes 0.1 s and 40 MB: only where a model runs

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning wins 3 % when nothing else runs and loses 40 % when something does, which on a device is the rule.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common base but this
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EdgeRuntimeError(f"{path}: the graph cannot be loaded: {reason}") from None
