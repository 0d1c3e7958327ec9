"""ONNX Runtime sessions, set up for a small shared device."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from functools import cache
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle import names
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edge_runtime.bundle.checksums import Checksums

log = logging.getLogger(__name__)

CPU = ("CPUExecutionProvider",)
_PROVIDERS = {"cpu": CPU, "cuda": ("CUDAExecutionProvider", *CPU)}

SPIN_US = 50
"""Microseconds for which a thread that has nothing to do goes on looking for work before it sleeps.

A token is hundreds of short products: threads that sleep at once must be woken for each, which costs more than the
shortest of them. Longer than this wins no more where nothing else runs, and loses where something does. Between runs
all threads sleep.
"""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_FREED_FROM = 128 << 10
"""ONNX Runtime turns a graph's scales into float32 in two steps and frees what the first gave; left alone, glibc keeps
the holes: a quarter of the weights' size more, for as long as the process lives."""
_FREED_FROM_PACKED = 32 << 20
"""Packed matrices need no such steps. Each is packed into a block that is freed again, to be compared: when the system
has to give and take these, opening the graph takes a third longer."""


def default_threads() -> int:
    """The cores this process may use, four at most: more rarely help a memory-bound decoder."""
    return max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def available(wanted: str) -> tuple[str, ...]:
    """ONNX Runtime's names for "cpu" or "cuda"; the CPU, with a warning, where this ONNX Runtime cannot do the latter.

    Raises:
        EdgeRuntimeError: Another name.
    """
    import onnxruntime as ort  # noqa: PLC0415

    if wanted not in _PROVIDERS:
        raise EdgeRuntimeError(f"providers is {wanted!r}; it must be one of {', '.join(_PROVIDERS)}")
    found = _PROVIDERS[wanted]
    if found[0] in ort.get_available_providers():
        return found
    log.warning("the model runs on the CPU: this ONNX Runtime has no %s (onnxruntime-gpu has it)", found[0])
    return CPU


def open_session(
    path: Path,
    threads: int,
    checksums: Checksums | None = None,
    graph: bytes | None = None,
    providers: Sequence[str] = CPU,
    *,
    packed: bool = False,
    pack: bool = True,
    arena: bool = False,
    spin_us: int = SPIN_US,
) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        path: The graph; its weights lie beside it.
        threads: To compute with.
        checksums: Those of its bundle: graph and weights are compared with them while they are loaded.
        graph: What to open in place of the file's contents.
        providers: See `available`.
        packed: Its matrices lie packed beside it.
        pack: Whether ONNX Runtime shall rearrange matrices for its kernels; else they stay where they are mapped.
        arena: Whether what a run computes goes into memory that is taken once a run: for graphs whose runs are long and
            whose values are large, which the system would else clear anew for each. Run it with `freeing`.
        spin_us: See `SPIN_US`; 0: threads sleep at once.

    Raises:
        EdgeRuntimeError: The graph is missing or damaged.
    """
    size = _FREED_FROM_PACKED if packed else _FREED_FROM
    options = session_options(threads, spin_us)
    options.enable_cpu_mem_arena = arena
    if not pack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if checksums is None:
        return _open_session(path, options, graph, providers, size)
    # The graph itself goes first, for a damaged one might do anything; damaged weights are only wrong numbers.
    checksums.check(path.name)
    with checksums.checking(names.data_file(path.name)):
        return _open_session(path, options, graph, providers, size)


def give_back() -> None:
    """Has the C library give unused memory back to the system, where it can.

    What reads a tokenizer leaves four times its lasting size behind, in blocks too small to go back by themselves.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _freed_from(size: int) -> Iterator[None]:
    """Has glibc give blocks of `size` bytes and more back to the system when they are freed, and keep smaller ones."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        yield
        return
    mallopt(_MMAP_THRESHOLD, size)
    mallopt(_TRIM_THRESHOLD, 2 * size)
    try:
        yield
    finally:
        # About where glibc itself arrives when blocks of a few megabytes come and go.
        mallopt(_MMAP_THRESHOLD, 4 << 20)
        mallopt(_TRIM_THRESHOLD, 8 << 20)


def freeing(session: Any) -> Any:
    """Options of a run that gives an arena's memory back at its end: it keeps three times what is needed else.

    Args:
        session: One with an arena; on another device it keeps that.
    """
    return _freeing() if session.get_providers() == list(CPU) else None


@cache
def _freeing() -> Any:
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def session_options(threads: int, spin_us: int = SPIN_US) -> Any:
    """Options for a small shared device."""
    import onnxruntime as ort  # noqa: PLC0415 - takes 0.1 s and 40 MB: only where a model runs

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    if spin_us:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    # Activations that a model was trained to round are rounded where it was, and their numbers stay float32.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # An arena keeps what it once took; blocks that are freed are not kept. See `open_session`.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return options


def _open_session(path: Path, options: Any, graph: bytes | None, providers: Sequence[str], size: int) -> Any:
    import onnxruntime as ort  # noqa: PLC0415 - takes 0.1 s and 40 MB: only where a model runs

    if graph is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        with _freed_from(size):
            session = ort.InferenceSession(graph or str(path), options, providers=list(providers))
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common base but this
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EdgeRuntimeError(f"{path}: the graph cannot be loaded: {reason}") from None
    if providers[0] not in session.get_providers():
        # A library of the GPU's that is missing shows only now.
        log.warning("%s runs on the CPU: %s could not be started", path.name, providers[0])
    return session
