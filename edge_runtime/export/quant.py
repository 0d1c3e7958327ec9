"""Block-wise symmetric weight quantisation in the layout of ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 32


def quantize(weight: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Rounds each block of 32 weights along K to `bits` (4 or 8) levels.

    The element m of largest magnitude becomes the lowest level (Q4_0's rule: scale = m / -8 for 4 bits), because the
    levels reach one step further down than up.

    Args:
        weight: [N, K], K a multiple of 32.
        bits: 4 or 8.

    Returns:
        packed [N, K/32, 32*bits/8], two 4-bit values a byte with the lower half first, and scales [N, K/32].
    """
    rows = weight.shape[0]
    middle = 1 << (bits - 1)
    blocks = weight.reshape(rows, -1, BLOCK)
    at = np.abs(blocks).argmax(-1)[..., None]
    scales = np.take_along_axis(blocks, at, -1) / np.float32(-middle)
    inverse = np.divide(np.float32(1.0), scales, out=np.zeros_like(scales), where=scales != 0)
    levels = np.rint(blocks * inverse)
    levels += middle
    np.clip(levels, 0, 2 * middle - 1, out=levels)
    whole = levels.astype(np.uint8)
    packed = whole if bits == 8 else whole[..., 0::2] | (whole[..., 1::2] << 4)
    return packed, scales[..., 0].astype(np.float32)


def dequantize(packed: NDArray[np.uint8], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """The weights that `quantize` stands for: [N, K] float32."""
    rows = packed.shape[0]
    middle = 1 << (bits - 1)
    if bits == 8:
        whole = packed.astype(np.float32)
    else:
        whole = np.empty((*packed.shape[:-1], BLOCK), np.float32)
        whole[..., 0::2] = packed & 15
        whole[..., 1::2] = packed >> 4
    whole -= middle
    whole *= scales[..., None]
    return whole.reshape(rows, -1)
