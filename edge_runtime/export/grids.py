"""Stored matrices whose levels and scales are known: they are taken over instead of being rounded again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge_runtime.export.quant import BLOCK, Format, Grid
from edge_runtime.export.safetensors import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class GridTensor(Tensor):
    """A stored tensor [N, K] that lies on a grid."""

    native: Format
    """What holds it exactly."""

    def grid(self, rows: NDArray[np.int64]) -> Grid:
        """The given rows (at least one), in their order."""
        raise NotImplementedError


@dataclass(frozen=True)
class Packed(GridTensor):
    """Integers of 2, 4 or 8 bits with their scales.

    In words or bytes, the first weight in the lowest bits and each 2^(bits-1) more than its level; or levels as int8.
    """

    words: Tensor
    scales: Tensor

    def grid(self, rows: NDArray[np.int64]) -> Grid:
        """See GridTensor."""
        steps = self.scales.take(rows)
        repeats = self.shape[1] // self.native.block // steps.shape[1]
        return Grid(self._levels(rows), np.repeat(steps, repeats, axis=1))

    def _levels(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        low, high, bits = int(rows.min()), int(rows.max()) + 1, self.native.bits
        levels = self.words.stored(low, high)[rows - low]
        if levels.dtype != np.int8:
            places = np.arange(0, 8, bits, dtype=np.uint8)
            unsigned = (levels.view(np.uint8)[:, :, None] >> places & np.uint8((1 << bits) - 1)).reshape(len(rows), -1)
            levels = (unsigned[:, : self.shape[1]].astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
        found: NDArray[np.int8] = levels
        return found

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """See Tensor."""
        return self.take(np.arange(*slice(start, stop).indices(self.shape[0])))

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """See Tensor."""
        return Grid(self._levels(rows), self.scales.take(rows)).values()


def block_of(width: int, scales: Tensor, rows: int) -> int:
    """The block of a matrix [rows, width] with scales [rows, groups]; 0 if none fits.

    One scale for more than 128 weights is repeated: MatMulNBits is quick up to there.
    """
    groups = scales.shape[1] if len(scales.shape) == 2 and scales.shape[0] == rows else 0
    if not groups or width % groups:
        return 0
    if width % BLOCK:
        return BLOCK  # multiplied in float32, whatever its format
    return next((block for block in (128, 64, 32) if width // groups % block == 0), 0)


def scales_for(steps: NDArray[np.float32], room: float) -> Literal["f16", "f32"]:
    """How scales are kept: as float16 if that moves none by more than `room` times itself."""
    with np.errstate(over="ignore"):
        moved = np.abs(steps.astype(np.float16).astype(np.float32) - steps)
    return "f16" if (moved <= room * np.abs(steps)).all() else "f32"
