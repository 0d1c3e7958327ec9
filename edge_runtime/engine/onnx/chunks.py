"""A prompt in chunks, for models whose images see themselves whole: where it may be cut, and what each token sees.

Such a model (`bidirectional_images`) lets the soft tokens of one image attend to each other in both directions on
sliding layers, within the window. So an image must lie in one chunk, and that chunk needs a mask of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.kv_cache import Lengths

_HIDDEN = np.float32(-1e9)  # large enough for a share of exactly 0, finite so that no kernel makes a NaN of it


def cuts(count: int, chunk: int, images: Sequence[tuple[int, int]] = ()) -> Iterator[tuple[int, int]]:
    """Cuts `count` tokens into runs (first, end) of at most `chunk`, or as long as the image in it.

    Args:
        count: Tokens.
        chunk: Tokens per run.
        images: First token and end of the images that must stay whole, in order.
    """
    start = 0
    while start < count:
        end = cut(start, count, chunk, images)
        yield start, end
        start = end


def cut(start: int, count: int, chunk: int, images: Sequence[tuple[int, int]] = ()) -> int:
    """The end of the run that begins at `start`; the rest as in `cuts`."""
    end = min(start + chunk, count)
    for first, last in images:
        if first < end < last:
            end = first if first > start else last
    return end


def window_bias(lengths: Lengths, window: int, images: Sequence[tuple[int, int]] = ()) -> NDArray[np.float32]:
    """What a chunk's tokens see on sliding layers: the decoder's input of that name.

    Args:
        lengths: The cache after the chunk.
        window: Positions a token sees, with its own.
        images: First position and end of the sequence's images; those in the chunk lie in it whole.

    Returns:
        float32 `[1, 1, tokens, resident]`.
    """
    rows = np.arange(lengths.total - lengths.resident, lengths.total)
    tokens = np.arange(lengths.start, lengths.total)
    sight = tokens.copy()
    for first, end in images:
        sight[max(first - lengths.start, 0) : max(end - lengths.start, 0)] = end - 1
    seen = (rows <= sight[:, None]) & (rows > tokens[:, None] - window)
    return np.where(seen, np.float32(0), _HIDDEN)[None, None]
