"""Weight matrices that are read some rows at a time, with their rows and columns in the order the graph wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from edge_runtime.export.safetensors import Tensor

_CHUNK = 4 << 20  # values converted at a time: 16 MiB of float32


class Matrix(Protocol):
    """A weight [N, K] (outputs by inputs)."""

    @property
    def name(self) -> str:
        """The tensor it comes from, for reports."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop: float32 [stop - start, K]."""


@dataclass(frozen=True)
class Stored:
    """A stored tensor, its rows and columns optionally chosen or reordered."""

    tensor: Tensor
    row_order: NDArray[np.int64] | None = None
    column_order: NDArray[np.int64] | None = None
    first: int = 0
    last: int | None = None

    @property
    def name(self) -> str:
        """See Matrix."""
        if self.first or self.last is not None:
            return f"{self.tensor.name}[{self.first}:{self.first + self.shape[0]}]"
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, int]:
        """See Matrix."""
        count = self.tensor.shape[0] if self.row_order is None else len(self.row_order)
        last = count if self.last is None else self.last
        return last - self.first, self.tensor.shape[1]

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """See Matrix."""
        start, stop = start + self.first, stop + self.first
        order = self.row_order
        part = self.tensor.read(start, stop) if order is None else self.tensor.take(order[start:stop])
        return part if self.column_order is None else part[:, self.column_order]


@dataclass(frozen=True)
class Stacked:
    """Matrices of the same K, one below the other: one multiplication instead of several."""

    parts: Sequence[Matrix]

    @property
    def name(self) -> str:
        """See Matrix."""
        return "+".join(part.name for part in self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        """See Matrix."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """See Matrix."""
        pieces = []
        offset = 0
        for part in self.parts:
            count = part.shape[0]
            low, high = max(start - offset, 0), min(stop - offset, count)
            if low < high:
                pieces.append(part.rows(low, high))
            offset += count
        return np.concatenate(pieces)


def chunks(matrix: Matrix, tick: Callable[[int], None] | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The matrix in groups of rows that fit in memory: (first row, float32 [some, K]).

    `tick` is told after each group how many values were dealt with.
    """
    count, width = matrix.shape
    step = max(1, _CHUNK // max(width, 1))
    for start in range(0, count, step):
        rows = matrix.rows(start, min(start + step, count))
        yield start, rows
        if tick:
            tick(rows.size)


def head_rows(heads: int, head_dim: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices that apply one `order` of head dimensions within each of `heads` heads: int64 [heads * head_dim]."""
    return (np.arange(heads)[:, None] * head_dim + order[None, :]).reshape(-1)
