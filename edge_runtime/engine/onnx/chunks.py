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
    return _bias(rows, np.arange(lengths.start, lengths.total), window, images)[None, None]


def kept_bias(
    lengths: Lengths, keep: int, least: int, window: int | None = None, images: Sequence[tuple[int, int]] = ()
) -> NDArray[np.float32]:
    """What a chunk's last tokens see: the decoder's inputs `kept_bias` and `kept_window_bias`.

    Args:
        lengths: The cache after the chunk.
        keep: How many tokens.
        least: Keys that the kernel is told of at least; no token sees those beyond what there is.
        window: On sliding layers, positions a token sees, with its own; None: full layers.
        images: As in `window_bias`.

    Returns:
        float32 `[keep, keys]`.
    """
    count = lengths.total if window is None else lengths.resident
    rows = np.arange(lengths.total - count, lengths.total - count + max(count, least))
    return _bias(rows, np.arange(lengths.total - keep, lengths.total), window, images)


def _bias(
    rows: NDArray[np.int64], tokens: NDArray[np.int64], window: int | None, images: Sequence[tuple[int, int]]
) -> NDArray[np.float32]:
    """0 where one of `tokens` sees one of `rows`, both given as positions; a large negative number elsewhere."""
    sight = tokens.copy()
    for first, end in images:
        sight[max(first - tokens[0], 0) : max(end - tokens[0], 0)] = end - 1
    seen = rows <= sight[:, None]
    if window is not None:
        seen &= rows > tokens[:, None] - window
    return np.where(seen, np.float32(0), _HIDDEN)
