"""`load`: a path becomes a model, whichever engine runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import is_bundle
from edge_runtime.engine.model import Model
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.machine import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.engine.llama.load import Choices


def load(
    path: str | Path | None = None,
    *,
    threads: int | None = None,
    context: int | None = None,
    memory_budget: str | int | None = None,
    kv_type: str | None = None,
    sessions: int = 1,
    providers: str = "cpu",
    spin_us: int | None = None,
    gguf: Choices | None = None,
    progress: Callable[[float], None] | None = None,
) -> Model:
    """Loads a model.

    Args:
        path: A bundle folder or a GGUF file; "auto" for the best on this box that its free memory takes; None for the
            built-in model.
        threads: To compute with; None: the cores there are, four at most.
        context: Tokens that prompt and answer may have together; None: 4096, or the model's own limit if that is less.
        memory_budget: What it may take, as "2G" or in bytes: a model that does not fit is refused before it is loaded.
            None: what the machine has.
        kv_type: How keys and values are kept: "fp32", "fp16" or "int8". None: fp32 for a bundle, with CUDA fp16; for
            a GGUF file fp16, or int8 where memory is short.
        sessions: Requests that may run at a time, each with keys and values of its own; of a bundle only.
        providers: "cpu", or "cuda" to compute a bundle on an NVIDIA GPU where ONNX Runtime can.
        spin_us: Microseconds for which a bundle's threads wait for work before they sleep; 0: they sleep at once, which
            is kindest to a box whose cores are busy. None: 50.
        gguf: What to run a GGUF file with, where that is not to be found out.
        progress: Called from another thread with the share of a GGUF file that is loaded, 0 to 1.

    Raises:
        EdgeRuntimeError: One line on what is wrong with `path`, or what would fit into the memory.
    """
    budget = _budget(memory_budget)
    if path is not None and str(path) == "auto":
        from edge_runtime import auto  # noqa: PLC0415

        path = auto.choose()
    if path is not None and Path(path).suffix.lower() == ".gguf":
        from edge_runtime.engine.llama.load import Choices, open_gguf  # noqa: PLC0415

        given = gguf or Choices()
        chosen = replace(
            given, kv_type=kv_type or given.kv_type, memory_budget=given.memory_budget if budget is None else budget
        )
        return Model(open_gguf(Path(path), context=context, threads=threads, choices=chosen, progress=progress))
    from edge_runtime import builtin  # noqa: PLC0415
    from edge_runtime.engine.onnx.engine import OnnxEngine  # noqa: PLC0415

    return Model(
        OnnxEngine(
            builtin.bundle_path() if path is None else _check_folder(Path(path)),
            context=context,
            threads=threads,
            name=builtin.NAME if path is None else None,
            kv_type=kv_type,
            memory_budget=budget,
            sessions=sessions,
            providers=providers,
            cache=builtin.cache_path(),
            spin_us=spin_us,
        )
    )


def _budget(given: str | int | None) -> int | None:
    """Bytes; a text is a size such as "2G"."""
    try:
        budget = parse_size(given) if isinstance(given, str) else given
    except ValueError:
        raise EdgeRuntimeError(f"the memory budget is {given!r}; it must be a size such as 4G or 1500M") from None
    if budget is not None and budget <= 0:
        raise EdgeRuntimeError(f"the memory budget is {given!r}; it must be above 0")
    return budget


def _check_folder(path: Path) -> Path:
    if not path.exists():
        raise EdgeRuntimeError(f"{path}: no such folder")
    if not path.is_dir():
        raise EdgeRuntimeError(f"{path} is a file; a model is a bundle folder")
    if not is_bundle(path):
        if (path / "config.json").is_file():
            raise EdgeRuntimeError(
                f"{path} is a checkpoint: make a bundle of it with edge-runtime export {path} BUNDLE"
            )
        raise EdgeRuntimeError(f"{path} is no bundle: it has no bundle.json")
    return path
