"""Keys and values of one sequence, updated in place by the decoder graph.

Full layers keep every token. Sliding layers keep a window: they use room for the window and one chunk, and before a
chunk that would not fit, the newest `window - 1` rows move to the front. The graph is told how many rows are
resident; positions stay absolute. Knows numpy arrays only, nothing of ONNX Runtime.

Going back to an earlier position is free on full layers. On sliding layers it needs the rows that a token at that
position sees; where they are gone, a `Window` that was kept when they were there brings them back.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edge_runtime.bundle.names import PARTS
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edge_runtime.gemma.geometry import TextGeometry

KVType = Literal["fp32", "fp16", "int8"]
"""How keys and values are kept."""

KV_DTYPES: dict[KVType, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}

LEAST_KEPT = 16
"""Of how many tokens a step can give logits, in the smallest context."""
SLACK = 16
"""Rows that a kept window has beyond what its end needs, so that one may also go on a little before it."""


def kv_type_of(name: str | None, *, gpu: bool = False) -> KVType:
    """`name` if it is one of `KVType`; None: fp32, on a `gpu` fp16, for which alone its attention kernel is made.

    Raises:
        EdgeRuntimeError: It is none.
    """
    if name is None:
        return "fp16" if gpu else "fp32"
    if gpu and name in {"fp32", "int8"}:
        raise EdgeRuntimeError(f"kv_type is {name!r}; with CUDA it must be fp16")
    for known in get_args(KVType):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise EdgeRuntimeError(f"kv_type is {name!r}; it must be one of {', '.join(get_args(KVType))}")


@dataclass(frozen=True)
class Lengths:
    """The cache after a chunk.

    Attributes:
        start: Position of the chunk's first token.
        total: Tokens so far: rows in use on full layers.
        resident: Rows in use on sliding layers.
    """

    start: int
    total: int
    resident: int


@dataclass(frozen=True)
class Span:
    """Positions `first .. end - 1`, whose rows a sliding layer has or had."""

    first: int
    end: int

    def reach(self, wanted: int, window: int) -> int:
        """The last position up to `wanted` from which these rows let a sequence go on exactly; 0: only from its start.

        The token at that position sees the `window - 1` rows before it.
        """
        found = min(wanted, self.end)
        return found if self.first == 0 or found - self.first >= window - 1 else 0


@dataclass(frozen=True)
class Window(Span):
    """A copy of the rows of all sliding layers, `[kv_heads, end - first, head_dim]` each."""

    rows: tuple[NDArray[Any], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the copy."""
        return sum(rows.nbytes for rows in self.rows)


class Layout:
    """Shapes of a sequence's buffers.

    Attributes:
        group: Query heads that share a key head, at most, where the tokens read whose logits are wanted.
    """

    def __init__(
        self, geometry: TextGeometry, context: int, chunk: int, *, largest: int = 0, kv_type: KVType = "fp32"
    ) -> None:
        """See `KVCache`."""
        self.window, self.context, self.chunk = geometry.sliding_window, context, chunk
        self.largest = max(chunk, largest)
        self.capacity = min(context, geometry.sliding_window + self.largest)
        self.dtype = KV_DTYPES[kv_type]
        self._geometry = geometry
        own = range(geometry.num_own_layers)
        self._read_by_kept = frozenset(geometry.kv_sources[geometry.num_own_layers - 1 :])
        self.group = max(geometry.num_heads // geometry.kv_heads[layer] for layer in self._read_by_kept)
        self.sliding = [(layer, part) for layer in own if not geometry.is_full(layer) for part in PARTS]
        self.full = [(layer, part) for layer in own if geometry.is_full(layer) for part in PARTS]

    def shape(self, layer: int, rows: int | None = None) -> tuple[int, int, int, int]:
        """`[1, kv_heads, rows, head_dim]`; rows as reserved, if not given."""
        if rows is None:
            rows = self.context if self._geometry.is_full(layer) else self.capacity
            if layer in self._read_by_kept:
                rows = max(rows, LEAST_KEPT * self.group + 1)
        return 1, self._geometry.kv_heads[layer], rows, self._geometry.head_dims[layer]

    @property
    def rows(self) -> int:
        """Of the largest buffer."""
        return max(self.shape(layer)[2] for layer in range(self._geometry.num_own_layers))

    @property
    def most_kept(self) -> int:
        """Of how many tokens a step can give logits, at most: see `export.kept`."""
        return (min(self.shape(layer)[2] for layer in self._read_by_kept) - 1) // self.group

    @property
    def nbytes(self) -> int:
        """Bytes reserved for one sequence."""
        return self._bytes(self.sliding, None) + self._bytes(self.full, None)

    def window_bytes(self) -> int:
        """Bytes of the largest `Window`."""
        return self._bytes(self.sliding, min(self.capacity, self.window - 1 + SLACK))

    def saved_bytes(self, total: int) -> int:
        """Bytes of all that is needed to go on after `total` tokens, at most."""
        return self.window_bytes() + self._bytes(self.full, total)

    def _bytes(self, places: Sequence[tuple[int, str]], rows: int | None) -> int:
        return sum(math.prod(self.shape(layer, rows)) for layer, _ in places) * self.dtype.itemsize


class KVCache:
    """The buffers of one sequence.

    Attributes:
        total: Tokens so far.
        resident: Rows in use on sliding layers.
        buffers: `[1, kv_heads, capacity, head_dim]` of each own-KV layer's "key" and "value"; they stay the same
            arrays for the cache's whole life. Rows not in use hold garbage, of finite numbers.
        changes: How often the sequence changed; who remembers what is in here can tell whether it still is.
    """

    def __init__(
        self, geometry: TextGeometry, context: int, chunk: int, *, largest: int = 0, kv_type: KVType = "fp32"
    ) -> None:
        """Reserves memory; pages come into being as they are written.

        Args:
            geometry: The decoder's shape.
            context: Tokens at most.
            chunk: Tokens per call of `advance`.
            largest: Tokens that a call may rarely have, if more: only then are the rows for them written.
            kv_type: How numbers are kept.
        """
        self.layout = Layout(geometry, context, chunk, largest=largest, kv_type=kv_type)
        self.total = self.resident = self.changes = 0
        places = sorted(self.layout.sliding + self.layout.full)
        self.buffers: dict[tuple[int, str], NDArray[Any]] = {
            place: np.zeros(self.layout.shape(place[0]), self.layout.dtype) for place in places
        }

    def reset(self) -> None:
        """Forgets the sequence; the buffers stay."""
        self.changes += 1
        self.total = self.resident = 0

    def advance(self, tokens: int) -> Lengths:
        """Makes room for the next `tokens` tokens, which the graph is about to write.

        Raises:
            EdgeRuntimeError: More than a chunk, or beyond the context.
        """
        layout = self.layout
        if not 0 < tokens <= layout.largest:
            raise EdgeRuntimeError(f"a chunk of {tokens} tokens; 1 to {layout.largest} fit", "internal")
        if self.total + tokens > layout.context:
            raise EdgeRuntimeError(f"{self.total + tokens} tokens, the context is {layout.context}", "too_large")
        if self.resident + tokens > min(layout.capacity, layout.window + max(layout.chunk, tokens)):
            self._compact(min(layout.window - 1, self.resident))
        start = self.total
        self.changes += 1
        self.total += tokens
        self.resident += tokens
        return Lengths(start, self.total, self.resident)

    @property
    def span(self) -> Span:
        """What sliding layers have now."""
        return Span(self.total - self.resident, self.total)

    def keep_window(self) -> Window:
        """A copy of what sliding layers need here."""
        count = min(self.resident, self.layout.window - 1 + SLACK)
        at = slice(self.resident - count, self.resident)
        rows = _copies([self.buffers[place][0, :, at] for place in self.layout.sliding])
        return Window(self.total - count, self.total, rows)

    def keep_full(self) -> tuple[NDArray[Any], ...]:
        """A copy of all that full layers have."""
        return _copies([self.buffers[place][0, :, : self.total] for place in self.layout.full])

    def go_back(self, total: int, window: Window | None = None) -> None:
        """Forgets all but the first `total` tokens.

        Args:
            total: A position that `span`, or `window` where it is given, reaches.
            window: Rows to put back on sliding layers, kept when the sequence had the same first `total` tokens.
        """
        self.changes += 1
        if window is None:
            self.resident -= self.total - total
        else:
            self.resident = total - window.first
            for place, rows in zip(self.layout.sliding, window.rows, strict=True):
                self.buffers[place][0, :, : self.resident] = rows[:, : self.resident]
        self.total = total

    def put_back(self, total: int, window: Window, full: Sequence[NDArray[Any]]) -> None:
        """Makes the first `total` tokens of a sequence of which `window` and `full` were kept the sequence."""
        for place, rows in zip(self.layout.full, full, strict=True):
            self.buffers[place][0, :, :total] = rows[:, :total]
        self.go_back(total, window)

    def _compact(self, keep: int) -> None:
        """Moves the newest `keep` rows of every sliding layer to the front."""
        for place in self.layout.sliding:
            rows = self.buffers[place]
            # numpy copies overlapping slices as if through a temporary.
            rows[:, :, :keep] = rows[:, :, self.resident - keep : self.resident]
        self.resident = keep

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return self.layout.nbytes


def _copies(parts: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """Copies in pages of their own, which go back to the system with the last of them.

    Blocks of many sizes that come and go would leave holes in the heap that grow with the hours.
    """
    total = sum(part.nbytes for part in parts)
    pages, at, found = mmap.mmap(-1, max(total, 1)), 0, []
    for part in parts:
        copy = np.frombuffer(pages, part.dtype, part.size, at).reshape(part.shape)
        copy[...] = part
        found.append(copy)
        at += part.nbytes
    return tuple(found)
