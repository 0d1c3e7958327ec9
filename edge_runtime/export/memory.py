"""How much memory an export takes, how much of the work it may therefore do at once, and the disk that it will fill.

What it holds at one time are pieces of matrices, some for each thread, so threads and the size of the pieces can be
chosen to stay under a limit. The numbers were measured; tests compare the promise with what the kernel counts.
"""

from __future__ import annotations

import math
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.bundle import names
from edge_runtime.bundle.checksums import cores
from edge_runtime.bundle.tables import TableSpec
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.parallel import Pace
from edge_runtime.export.quant import FP32, Format
from edge_runtime.machine import memory, readable

if TYPE_CHECKING:
    from edge_runtime.export.recipes import Recipe
    from edge_runtime.export.safetensors import Checkpoint
    from edge_runtime.gemma.geometry import Geometry

_PIECES = tuple(size << 10 for size in (4096, 2048, 1024, 512, 256))
"""Bytes of float32 rows that a thread deals with at a time. Longer ones are no faster."""
_COPIES = 6
"""Pieces that a thread holds at the worst: as read, put together, rounded, and what the error is summed from."""
_WAITING = 2
"""Finished pieces that wait to be written, beside one for each thread."""
_PER_THREAD = 2 << 20
"""Stack, and arrays of fixed size."""
_FIXED, _PER_LAYER, _PER_EXPERT = 24 << 20, 1 << 20, 60 << 10
"""Nodes of the graphs (an expert of a layer has its own), checksums, the manifest."""


_GRAPHS = 2 << 20  # bytes of all but weights and copied files
_EMBEDDING, _PER_LAYER_EMBEDDING = "embed_tokens.weight", "embed_tokens_per_layer.weight"
_TOWERS = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.")


@dataclass(frozen=True)
class Budget:
    """How an export goes about it."""

    pace: Pace
    peak: int
    """Bytes that the process stays under."""


def budget(geometry: Geometry, *, threads: int | None = None, limit: int | None = None) -> Budget:
    """Chooses threads and pieces.

    Args:
        geometry: Of the model.
        threads: At most so many; left out, one for each core.
        limit: Bytes that the process must stay under, what it holds already included; left out, the plan adapts to
            what the machine has free, if that is enough.

    Raises:
        EdgeRuntimeError: `limit` is less than one thread with the smallest pieces needs.
    """
    text = geometry.text
    graphs = _FIXED + text.num_layers * (_PER_LAYER + _PER_EXPERT * text.num_experts)
    base = resident() + graphs + _whole(geometry)
    most = threads or cores()
    paces = [Pace(workers, piece) for workers in range(most, 0, -1) for piece in _PIECES]
    room = _available() if limit is None else limit
    fitting = next((pace for pace in paces if base + _working(pace) <= room), None)
    if fitting is None:
        least = base + _working(paces[-1])
        if limit is not None:
            raise EdgeRuntimeError(f"this export needs {readable(least)} of memory, {readable(limit)} are allowed")
        return Budget(paces[-1], least)
    return Budget(fitting, base + _working(fitting))


def bundle_bytes(recipe: Recipe, tensors: Checkpoint, drafter: Checkpoint | None = None) -> int:
    """About how large a bundle will be, rather too much than too little."""
    copied = (tensors.folder / name for name in names.COPIED)
    total = _GRAPHS + sum(path.stat().st_size for path in copied if path.is_file())
    for name in tensors.names():
        form = recipe.towers if any(part in name for part in _TOWERS) else recipe.decoder
        if recipe.head and name.endswith(_EMBEDDING):
            form = recipe.head
        shape = tensors.get(name).shape
        if name.endswith(_PER_LAYER_EMBEDDING) and len(shape) == 2:
            total += _table_bytes(shape[0], shape[1], recipe.per_layer_embedding)
        else:
            total += _weight_bytes(shape, form)
        if name.endswith(_EMBEDDING) and form == FP32:
            total += _weight_bytes(shape, form)  # then the output head is another one
    if drafter:
        total += sum(_weight_bytes(drafter.get(name).shape, recipe.drafter) for name in drafter.names())
    return total


def resident() -> int:
    """Bytes of memory that this process has now."""
    return _status("VmRSS")


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    return _status("VmHWM")


def _weight_bytes(shape: tuple[int, ...], form: Format) -> int:
    width = shape[-1] if shape else 1
    form = form.fitting(width) if len(shape) > 1 else FP32
    return math.prod(shape[:-1]) * form.row_bytes(width)


def _table_bytes(rows: int, dim: int, bits: int) -> int:
    """The larger one, of the blocks there may be."""
    blocks = [block for block in (32, 64) if dim % block == 0] if bits != FP32.bits else []
    specs = [TableSpec.make(rows=rows, dim=dim, bits=bits, block=block) for block in blocks]
    return max((spec.size for spec in specs), default=4 * rows * dim)


def _working(pace: Pace) -> int:
    return pace.workers * (_COPIES * pace.chunk_bytes + _PER_THREAD) + _WAITING * pace.chunk_bytes


def _whole(geometry: Geometry) -> int:
    """The largest tensor that is not read in pieces, as stored and as float32."""
    vision, assistant = geometry.vision, geometry.assistant
    positions = 2 * vision.position_table_size * vision.hidden_size * (2 + 4) if vision else 0
    # Token order of a drafter's head: as read, and twice as indices.
    ordering = 3 * 8 * assistant.text.vocab_size if assistant and assistant.ordered_embeddings else 0
    return max(positions, ordering)


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])
    except FileNotFoundError:  # not Linux; what follows also counts what the process held that started this one
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _available() -> float:
    try:
        return memory().available
    except FileNotFoundError:
        return float("inf")
