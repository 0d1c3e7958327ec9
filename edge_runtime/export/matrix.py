"""Weight matrices that are read some rows at a time, with their rows and columns in the order the graph wants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge_runtime.export.grids import GridTensor
from edge_runtime.export.quant import Grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edge_runtime.export.quant import Format
    from edge_runtime.export.safetensors import Tensor


@dataclass(frozen=True)
class Rounding:
    """What a matrix was trained to take and to give: multiples of these, from -128 to 127; 0: any numbers."""

    input: float = 0.0
    output: float = 0.0


def on_grid(values: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    """The nearest multiples of `step` from -128 to 127; the values themselves if it is 0."""
    return np.clip(np.rint(values / np.float32(step)), -128, 127) * np.float32(step) if step else values


class Matrix(Protocol):
    """A weight [N, K] (outputs by inputs)."""

    @property
    def name(self) -> str:
        """The tensor it comes from, for reports."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""

    @property
    def native(self) -> Format | None:
        """The format that it already lies on, so that storing it so loses nothing; None if there is none."""

    @property
    def rounding(self) -> Rounding:
        """Of what is multiplied with it, and of the product."""

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop: float32 [stop - start, K]."""

    def grid(self, start: int, stop: int) -> Grid:
        """Rows start..stop as they lie on the `native` format."""


@dataclass(frozen=True)
class Stored:
    """A stored tensor, its rows and columns optionally chosen or reordered."""

    tensor: Tensor
    row_order: NDArray[np.int64] | None = None
    column_order: NDArray[np.int64] | None = None
    first: int = 0
    last: int | None = None
    rounding: Rounding = Rounding()

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

    @property
    def native(self) -> Format | None:
        """See Matrix."""
        if not isinstance(self.tensor, GridTensor):
            return None
        form = self.tensor.native
        return form if self.column_order is None or _keeps_blocks(self.column_order, form.block) else None

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """See Matrix."""
        start, stop = start + self.first, stop + self.first
        order = self.row_order
        part = self.tensor.read(start, stop) if order is None else self.tensor.take(order[start:stop])
        return part if self.column_order is None else part[:, self.column_order]

    def grid(self, start: int, stop: int) -> Grid:
        """See Matrix."""
        tensor = self.tensor
        assert isinstance(tensor, GridTensor)  # noqa: S101  else `native` is None
        start, stop = start + self.first, stop + self.first
        order, columns = self.row_order, self.column_order
        found = tensor.grid(np.arange(start, stop) if order is None else order[start:stop])
        if columns is None:
            return found
        block = tensor.native.block
        return Grid(found.levels[:, columns], found.steps[:, columns[::block] // block])


@dataclass(frozen=True)
class Stacked:
    """Matrices of the same K, one below the other: one multiplication instead of several.

    What rounds their inputs and outputs is left to each.
    """

    parts: Sequence[Matrix]
    rounding: Rounding = Rounding()

    @property
    def name(self) -> str:
        """See Matrix."""
        return "+".join(part.name for part in self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        """See Matrix."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def native(self) -> Format | None:
        """See Matrix. All parts must have one, and differ in it by no more than the scales' precision."""
        forms = [part.native for part in self.parts]
        first = forms[0]
        if first is None or any(form is None or replace(form, scales=first.scales) != first for form in forms):
            return None
        return next((form for form in forms if form and form.scales == "f32"), first)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """See Matrix."""
        return np.concatenate([part.rows(*run) for part, run in self._within(start, stop)])

    def grid(self, start: int, stop: int) -> Grid:
        """See Matrix."""
        found = [part.grid(*run) for part, run in self._within(start, stop)]
        return Grid(np.concatenate([part.levels for part in found]), np.concatenate([part.steps for part in found]))

    def _within(self, start: int, stop: int) -> Iterator[tuple[Matrix, tuple[int, int]]]:
        """The parts that rows start..stop lie in, each with the run of its own rows."""
        offset = 0
        for part in self.parts:
            count = part.shape[0]
            low, high = max(start - offset, 0), min(stop - offset, count)
            if low < high:
                yield part, (low, high)
            offset += count


def _keeps_blocks(order: NDArray[np.int64], block: int) -> bool:
    """Whether an order of columns moves whole blocks."""
    if len(order) % block:
        return False
    blocks = order.reshape(-1, block)
    return bool((blocks == blocks[:, :1] + np.arange(block)).all() and not (blocks[:, 0] % block).any())


def head_rows(
    heads: int | NDArray[np.int64], head_dim: int, order: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Indices that put heads, and the dimensions within each, into another order: int64 [heads * head_dim].

    Args:
        heads: How many, or their order.
        head_dim: Dimensions of each.
        order: Of the dimensions; None: as they are.
    """
    first = (np.arange(heads) if isinstance(heads, int) else heads)[:, None] * head_dim
    return (first + (np.arange(head_dim) if order is None else order)).reshape(-1)
