"""Opens a bundle's graphs: as they were exported, or as they were packed for this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.bundle import names
from edge_runtime.engine.onnx.kv_graph import read_graph, set_kv_type
from edge_runtime.engine.onnx.session import CPU, SPIN_US, open_session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_runtime.bundle.checksums import Checksums
    from edge_runtime.engine.onnx.kv_cache import KVType
    from edge_runtime.engine.onnx.packed import PackedGraphs
    from edge_runtime.gemma.geometry import TextGeometry


def open_graph(
    folder: Path,
    graph: str,
    threads: int,
    checksums: Checksums | None = None,
    packed: PackedGraphs | None = None,
    kv_type: KVType = "fp32",
    text: TextGeometry | None = None,
    providers: Sequence[str] = CPU,
    spin_us: int = SPIN_US,
) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        folder: The bundle.
        graph: One of `names`' graphs.
        threads: To compute with.
        checksums: The bundle's; None: files are not checked.
        packed: Where weights lie packed; they are packed there first if need be. None: they are packed into memory.
        kv_type: How a decoder is to keep keys and values.
        text: The decoder's shape; needed unless `kv_type` is "fp32".
        providers: See `session.available`.
        spin_us: See `session.SPIN_US`.

    Raises:
        EdgeRuntimeError: The graph is missing or damaged.
    """
    if packed is not None and (session := packed.open(graph, threads, checksums, kv_type, spin_us)) is not None:
        return session
    if kv_type == "fp32" or text is None:
        arena = graph in names.TOWERS
        return open_session(folder / graph, threads, checksums, providers=providers, arena=arena, spin_us=spin_us)
    if checksums is not None:
        checksums.check(graph)
    model = read_graph(folder / graph)
    set_kv_type(model, text, kv_type, folder)
    return open_session(folder / graph, threads, checksums, model.SerializeToString(), providers, spin_us=spin_us)
