"""Rotary position tables, and the order of head dimensions that makes partial rotation a prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.gemma.geometry import FULL, SLIDING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.gemma.geometry import TextGeometry


def rope_tables(text: TextGeometry, positions: int) -> dict[str, NDArray[np.float32]]:
    """The graph inputs cos_sliding, sin_sliding, cos_full and sin_full: [positions, `table_pairs`] each.

    Angles are computed in float32, as transformers does. On full layers ("proportional" rotary embedding) the exponent
    runs over the whole head while only the first `partial_rotary_factor` of its pairs turn.
    """
    tables: dict[str, NDArray[np.float32]] = {}
    for name, layer_type, theta in (
        ("sliding", SLIDING, text.rope_theta_sliding),
        ("full", FULL, text.rope_theta_full),
    ):
        dim = text.head_dim(layer_type)
        if not dim:
            continue
        turning = text.rotated_pairs(layer_type)
        exponents = np.arange(0, 2 * turning, 2, dtype=np.float32) / np.float32(dim)
        frequencies = np.zeros(table_pairs(text, layer_type), np.float32)
        frequencies[:turning] = np.float32(1.0) / np.power(np.float32(theta), exponents)
        angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]
        tables[f"cos_{name}"] = np.cos(angles)
        tables[f"sin_{name}"] = np.sin(angles)
    return tables


def table_pairs(text: TextGeometry, layer_type: str) -> int:
    """Width of the tables of one type of layers: the pairs that turn, and pairs of angle 0 up to a multiple of 8.

    GroupQueryAttention takes no other widths.
    """
    turning = text.rotated_pairs(layer_type)
    return min(turning + -turning % 8, text.head_dim(layer_type) // 2)


def head_order(head_dim: int, pairs: int) -> NDArray[np.int64]:
    """The order of a head's dimensions that puts its turning pairs (i, i + head_dim/2), i < pairs, first.

    Queries, keys and their norm weights are stored in this order on full layers, so that a rotary kernel turns the
    first 2 * pairs dimensions as two halves and leaves the rest; dot products do not notice.
    """
    half = head_dim // 2
    return np.concatenate(
        [np.arange(pairs), half + np.arange(pairs), np.arange(pairs, half), half + np.arange(pairs, half)]
    )
