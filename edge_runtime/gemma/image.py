"""Image geometry of Gemma 4's vision tower: target size within a budget of soft tokens, patches, positions.

Resizing itself needs an imaging library and is `edge_runtime.media`'s; everything here is numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUDGETS = (70, 140, 280, 560, 1120)
"""Soft tokens per image that Gemma 4 was trained with."""


@dataclass(frozen=True)
class Patches:
    """An image ready for the vision tower.

    Attributes:
        pixels: float32 `[n, 3 * patch * patch]` in 0..1; a patch is (row, column, channel), patches go row by row.
        positions: int64 `[n, 2]`, (x, y) of each patch in the grid.
        soft_tokens: Tokens that the tower gives for it, `n / pool**2`.
    """

    pixels: NDArray[np.float32]
    positions: NDArray[np.int64]
    soft_tokens: int


@dataclass(frozen=True)
class PatchGrid:
    """How an image is cut, with the settings of a checkpoint.

    Attributes:
        patch: Pixels on a side of a patch.
        pool: Patches on a side of the square that becomes one soft token.
        budget: Soft tokens at most, one of `BUDGETS`.
        scale: Factor from 0..255 to the tower's range.
    """

    patch: int = 16
    pool: int = 3
    budget: int = 280
    scale: float = 1 / 255

    @classmethod
    def from_config(cls, processor: dict[str, Any]) -> PatchGrid:
        """Reads `processor_config.json` (its `image_processor` part; what is absent has Gemma 4's value).

        Raises:
            EdgeRuntimeError: The budget is not one of `BUDGETS`.
        """
        config = processor.get("image_processor") or {}
        grid = cls(
            patch=int(config.get("patch_size", cls.patch)),
            pool=int(config.get("pooling_kernel_size", cls.pool)),
            scale=float(config.get("rescale_factor", cls.scale)),
        )
        return grid.with_budget(int(config.get("max_soft_tokens", cls.budget)))

    def with_budget(self, budget: int) -> PatchGrid:
        """The same grid with another budget.

        Raises:
            EdgeRuntimeError: `budget` is not one of `BUDGETS`.
        """
        if budget not in BUDGETS:
            raise EdgeRuntimeError(f"image_tokens is {budget}; it can be {', '.join(map(str, BUDGETS))}")
        return replace(self, budget=budget)

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """The largest (width, height) of about the same shape that fits the budget in whole pooling squares.

        Raises:
            EdgeRuntimeError: The image has no pixels, or is so long and thin that it cannot fit.
        """
        if width < 1 or height < 1:
            raise EdgeRuntimeError(f"the image is {width} x {height} pixels: it has none", "unsupported_media")
        side = self.patch * self.pool
        pixels = self.budget * side * side
        factor = math.sqrt(pixels / (height * width))
        rows, columns = math.floor(factor * height / side), math.floor(factor * width / side)
        if rows == 0:
            rows, columns = 1, min(width // height, self.budget)
        elif columns == 0:
            rows, columns = min(height // width, self.budget), 1
        if not 0 < rows * columns <= self.budget:
            raise EdgeRuntimeError(f"the image is {width} x {height} pixels: too thin to be read", "unsupported_media")
        return columns * side, rows * side

    def cut(self, rgb: NDArray[np.uint8]) -> Patches:
        """Cuts an image that already has its target size.

        Args:
            rgb: uint8 `[height, width, 3]`, both sides multiples of `patch * pool`.
        """
        height, width, channels = rgb.shape
        rows, columns = height // self.patch, width // self.patch
        scaled = (rgb.astype(np.float64) * self.scale).astype(np.float32)
        blocks = scaled.reshape(rows, self.patch, columns, self.patch, channels).swapaxes(1, 2)
        grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="xy"), axis=-1)
        return Patches(
            pixels=blocks.reshape(rows * columns, -1),
            positions=grid.reshape(-1, 2).astype(np.int64),
            soft_tokens=rows * columns // self.pool**2,
        )
