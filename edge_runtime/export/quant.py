"""Block-wise symmetric weight quantisation in the layout of ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_runtime.bundle.scales import best_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 32
# Levels that the extreme of a block is tried at. The lowest is Q4_0's rule, for the levels reach one step further down
# than up; from more than that it is cut off for the others' sake; from the highest the block may do without its sign.
_TOPS = {2: (-2.0, -2.4, -1.6, -1.3, 1.2, 1.5), 4: (-8.0, -8.6, -9.2, -7.4, 7.0)}
SLAB = 1 << 16
"""Weights dealt with at a time: what stays in a core's cache."""

_SCALE_DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "i8": np.dtype("i1")}


@dataclass(frozen=True)
class Format:
    """How a matrix is stored."""

    bits: int
    """2, 4, 8, or 32 to keep it in float32."""
    block: int = BLOCK
    """Weights along K that share a scale; unused at 32 bits."""
    scales: Literal["f32", "f16", "i8"] = "f32"
    """Scales as float32, as float16, or as int8 times a float32 factor for each row."""

    def __str__(self) -> str:
        return f"{self.bits}/{self.block}/{self.scales}"

    def fitting(self, width: int) -> Format:
        """This format with a block that divides `width`: a shorter one, or 32 bits if even `BLOCK` does not."""
        block = self.block
        while block > BLOCK and width % block:
            block //= 2
        if self.bits == 32 or width % block:
            return FP32
        return Format(self.bits, block, self.scales)

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Of a scale in the file."""
        return _SCALE_DTYPES[self.scales]

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` weights with its scales."""
        if self.bits == 32:
            return 4 * width
        factor = 4 if self.scales == "i8" else 0
        return width * self.bits // 8 + width // self.block * self.scale_dtype.itemsize + factor

    def kernel_bytes(self, width: int) -> int:
        """Bytes of a row of `width` weights as x86-64's kernels keep it: with two float32 for each block."""
        return 4 * width if self.bits == 32 else width * self.bits // 8 + 8 * (width // self.block)


FP32 = Format(32)


@dataclass(frozen=True)
class Grid:
    """Rows of a matrix whose levels are known, because it was trained or stored so.

    Attributes:
        levels: int8 [N, K], from -2^(bits-1) to 2^(bits-1) - 1.
        steps: float32 [N, K/block], what a level is times.
    """

    levels: NDArray[np.int8]
    steps: NDArray[np.float32]

    def values(self) -> NDArray[np.float32]:
        """The weights: float32 [N, K]."""
        rows, blocks = self.steps.shape
        return (self.levels.reshape(rows, blocks, -1) * self.steps[..., None]).reshape(rows, -1)


@dataclass
class Rounded:
    """Rows of a matrix, rounded.

    Attributes:
        format: How.
        packed: uint8 [N, K/block, block*bits/8], the first weight of a byte in its lowest bits.
        scales: [N, K/block] as they are stored.
        factors: float32 [N, 1] that the scales are times, of the scales "i8"; else None.
        lost: Sum of the squares of what was rounded away.
        whole: Sum of the squares of the weights.
    """

    format: Format
    packed: NDArray[np.uint8]
    scales: NDArray[Any]
    factors: NDArray[np.float32] | None
    lost: float = 0.0
    whole: float = 0.0

    @classmethod
    def empty(cls, form: Format, rows: int, width: int) -> Rounded:
        """Room for [rows, width] weights."""
        blocks = width // form.block
        return cls(
            form,
            np.empty((rows, blocks, form.block * form.bits // 8), np.uint8),
            np.empty((rows, blocks), form.scale_dtype),
            np.empty((rows, 1), np.float32) if form.scales == "i8" else None,
        )

    def steps(self) -> NDArray[np.float32]:
        """The scales as the graph has them: float32 [N, K/block]."""
        steps = self.scales.astype(np.float32)
        return steps if self.factors is None else steps * self.factors


def quantize(weight: NDArray[np.float32], form: Format, importance: NDArray[np.float32] | None = None) -> Rounded:
    """Rounds each block of weights along K to 2^bits levels, with the scale of a few tried that errs least.

    Weights are rounded to the scale as it is stored, so that its own rounding is not added on top.

    Args:
        weight: [N, K], K a multiple of the format's block.
        form: Of 2, 4 or 8 bits.
        importance: What a squared error counts in each column, [K]; left out, all the same.
    """
    rows, width = weight.shape
    result = Rounded.empty(form, rows, width)
    middle = 1 << (form.bits - 1)
    step = max(1, SLAB // width)
    for start in range(0, rows, step):
        at = slice(start, start + step)
        blocks = weight[at].reshape(-1, width // form.block, form.block)
        steps = _store(_scales(blocks, form.bits, importance), result, at)[..., None]
        levels = blocks * np.divide(np.float32(1.0), steps, out=np.zeros_like(steps), where=steps != 0)
        np.rint(levels, out=levels)
        np.clip(levels, -middle, middle - 1, out=levels)
        result.packed[at] = pack(levels, form.bits)
        levels *= steps
        levels -= blocks
        result.lost += square(levels)
        result.whole += square(blocks)
    return result


def scaled(
    weight: NDArray[np.float32], form: Format, importance: NDArray[np.float32] | None = None
) -> tuple[Rounded, NDArray[np.float32]]:
    """Room for `weight` [N, K] with the scales that `quantize` takes, and these as they will be read: [N, K/block]."""
    rows, width = weight.shape
    result, steps = Rounded.empty(form, rows, width), np.empty((rows, width // form.block), np.float32)
    step = max(1, SLAB // width)
    for start in range(0, rows, step):
        at = slice(start, start + step)
        blocks = weight[at].reshape(-1, width // form.block, form.block)
        steps[at] = _store(_scales(blocks, form.bits, importance), result, at)
    return result, steps


def settle(grid: Grid, form: Format) -> Rounded:
    """Stores known levels. Exact if the format's scales can hold the grid's steps."""
    rows, width = grid.levels.shape
    result = Rounded.empty(form, rows, width)
    step = max(1, SLAB // width)
    for start in range(0, rows, step):
        at = slice(start, start + step)
        levels = grid.levels[at].reshape(-1, width // form.block, form.block)
        stored = _store(grid.steps[at], result, at)
        result.packed[at] = pack(levels, form.bits)
        result.lost += square(levels * (stored - grid.steps[at])[..., None])
        result.whole += square(levels * grid.steps[at][..., None])
    return result


def dequantize(rounded: Rounded) -> NDArray[np.float32]:
    """The weights that `rounded` stands for: float32 [N, K]."""
    bits, rows = rounded.format.bits, len(rounded.packed)
    per_byte, mask = 8 // bits, (1 << bits) - 1
    whole = np.empty((*rounded.scales.shape, rounded.format.block), np.float32)
    for place in range(per_byte):
        whole[..., place::per_byte] = (rounded.packed >> (bits * place)) & mask
    whole -= 1 << (bits - 1)
    whole *= rounded.steps()[..., None]
    return whole.reshape(rows, -1)


def _scales(blocks: NDArray[np.float32], bits: int, importance: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The scale of each block [n, blocks, block]: [n, blocks]."""
    if bits == 8:
        # Trying others would win a thirtieth of an error that is nothing as it is.
        return extremes(blocks) / np.float32(-128)
    count = blocks.shape[2]
    if importance is not None:
        importance = np.broadcast_to(importance.reshape(-1, count), blocks.shape).reshape(-1, count)
    return best_scales(blocks.reshape(-1, count), bits, _TOPS[bits], importance).reshape(blocks.shape[:2])


def extremes(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """The element of largest magnitude of each block [..., block]."""
    at = np.abs(blocks).argmax(-1)[..., None]
    return np.take_along_axis(blocks, at, -1)[..., 0]


def _store(scales: NDArray[np.float32], result: Rounded, at: slice) -> NDArray[np.float32]:
    """Writes scales [n, blocks] as the format has them and gives them back as they will be read."""
    stored: NDArray[np.float32]
    if result.factors is None:
        # A scale that float16 cannot hold would be infinite.
        top = np.finfo(result.scales.dtype).max
        result.scales[at] = np.clip(scales, -top, top)
        stored = result.scales[at].astype(np.float32)
        return stored
    factors = np.abs(scales).max(-1, keepdims=True) / np.float32(127)
    factors[factors == 0] = 1
    whole = np.rint(scales / factors)
    result.scales[at], result.factors[at] = whole, factors
    stored = whole * factors
    return stored


def pack(levels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Levels [..., block] from -2^(bits-1), `8 / bits` of them a byte."""
    per_byte = 8 // bits
    # Adding 2^(bits-1) flips that bit of a number in two's complement and leaves the lower ones.
    whole = np.bitwise_and(np.bitwise_xor(levels.astype(np.int8).view(np.uint8), 1 << (bits - 1)), (1 << bits) - 1)
    packed = whole[..., 0::per_byte]
    for place in range(1, per_byte):
        packed = np.bitwise_or(packed, np.left_shift(whole[..., place::per_byte], bits * place), dtype=np.uint8)
    return packed


def square(values: NDArray[np.float32]) -> float:
    """Sum of squares."""
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))
