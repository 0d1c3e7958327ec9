"""Keys and values of one sequence, updated in place by the decoder graph.

Full layers keep every token. Sliding layers keep a window: they use room for the window and one chunk, and before a
chunk that would not fit, the newest `window - 1` rows move to the front. The graph is told how many rows are
resident; positions stay absolute. Knows numpy arrays only, nothing of ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.gemma.geometry import TextGeometry

PARTS = ("key", "value")


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


class KVCache:
    """The buffers of one sequence.

    Attributes:
        total: Tokens so far.
        resident: Rows in use on sliding layers.
        buffers: float32 `[1, kv_heads, capacity, head_dim]` of each own-KV layer's "key" and "value"; they stay the
            same arrays for the cache's whole life. Rows not in use hold garbage.
    """

    def __init__(self, geometry: TextGeometry, context: int, chunk: int, *, largest: int = 0) -> None:
        """Reserves memory; pages come into being as they are written.

        Args:
            geometry: The decoder's shape.
            context: Tokens at most.
            chunk: Tokens per call of `advance`.
            largest: Tokens that a call may rarely have, if more: only then are the rows for them written.
        """
        self._window, self._context, self._chunk = geometry.sliding_window, context, chunk
        self._largest = max(chunk, largest)
        self._capacity = min(context, geometry.sliding_window + self._largest)
        self._sliding = [i for i in range(geometry.num_own_layers) if not geometry.is_full(i)]
        self.total = self.resident = 0
        self.buffers: dict[tuple[int, str], NDArray[np.float32]] = {}
        for layer in range(geometry.num_own_layers):
            rows = context if geometry.is_full(layer) else self._capacity
            shape = (1, geometry.kv_heads[layer], rows, geometry.head_dims[layer])
            for part in PARTS:
                self.buffers[layer, part] = np.zeros(shape, np.float32)

    def reset(self) -> None:
        """Forgets the sequence; the buffers stay."""
        self.total = self.resident = 0

    def advance(self, tokens: int) -> Lengths:
        """Makes room for the next `tokens` tokens, which the graph is about to write.

        Raises:
            EdgeRuntimeError: More than a chunk, or beyond the context.
        """
        if not 0 < tokens <= self._largest:
            raise EdgeRuntimeError(f"a chunk of {tokens} tokens; 1 to {self._largest} fit", "internal")
        if self.total + tokens > self._context:
            raise EdgeRuntimeError(f"{self.total + tokens} tokens, the context is {self._context}", "too_large")
        if self.resident + tokens > min(self._capacity, self._window + max(self._chunk, tokens)):
            self._compact(min(self._window - 1, self.resident))
        start = self.total
        self.total += tokens
        self.resident += tokens
        return Lengths(start, self.total, self.resident)

    def _compact(self, keep: int) -> None:
        """Moves the newest `keep` rows of every sliding layer to the front."""
        for layer in self._sliding:
            for part in PARTS:
                rows = self.buffers[layer, part]
                # numpy copies overlapping slices as if through a temporary.
                rows[:, :, :keep] = rows[:, :, self.resident - keep : self.resident]
        self.resident = keep

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(buffer.nbytes for buffer in self.buffers.values())
