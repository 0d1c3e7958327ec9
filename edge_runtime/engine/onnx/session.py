"""ONNX Runtime sessions, set up for a small shared device."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle import names
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.checksums import Checksums

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def default_threads() -> int:
    """The cores this process may use, four at most: more rarely help a memory-bound decoder."""
    return max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def open_session(path: Path, threads: int, checksums: Checksums | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Args:
        path: The graph; its weights lie beside it.
        threads: To compute with.
        checksums: Those of its bundle: graph and weights are compared with them while they are loaded.

    Raises:
        EdgeRuntimeError: The graph is missing or damaged.
    """
    if checksums is None:
        return _open_session(path, threads)
    # The graph itself goes first, for a damaged one might do anything; damaged weights are only wrong numbers.
    checksums.check(path.name)
    with checksums.checking(names.data_file(path.name)):
        return _open_session(path, threads)


@contextlib.contextmanager
def _freed_at_once() -> Iterator[None]:
    """Has glibc give blocks of 128 KiB and more back to the system when they are freed.

    ONNX Runtime turns a graph's scales into float32 in two steps and frees what the first gave; left alone, glibc keeps
    the holes: a quarter of the weights' size more, for as long as the process lives.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        yield
        return
    mallopt(_MMAP_THRESHOLD, 128 << 10)
    try:
        yield
    finally:
        # About where glibc itself arrives when blocks of a few megabytes come and go.
        mallopt(_MMAP_THRESHOLD, 4 << 20)
        mallopt(_TRIM_THRESHOLD, 8 << 20)


def _open_session(path: Path, threads: int) -> Any:
    import onnxruntime as ort  # noqa: PLC0415 - takes 0.1 s and 40 MB: only where a model runs

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning wins 3 % when nothing else runs and loses 40 % when something does, which on a device is the rule.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        with _freed_at_once():
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common base but this
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EdgeRuntimeError(f"{path}: the graph cannot be loaded: {reason}") from None
