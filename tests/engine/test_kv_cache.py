from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.onnx.kv_cache import LEAST_KEPT, KVCache
from edge_runtime.errors import EdgeRuntimeError

WINDOW = 5


def cache(context: int = 64, chunk: int = 4, largest: int = 0) -> KVCache:
    geometry: Any = SimpleNamespace(
        num_own_layers=2,
        num_heads=2,
        kv_sources=(0, 1, 1),
        sliding_window=WINDOW,
        kv_heads=(1, 2, 1),
        head_dims=(2, 4, 2),
        is_full=lambda layer: layer == 1,
    )
    return KVCache(geometry, context, chunk, largest=largest)


def write(kv: KVCache, tokens: int) -> None:
    """What the graph does: puts the position of each token in its row."""
    lengths = kv.advance(tokens)
    positions = np.arange(lengths.start, lengths.total, dtype=np.float32)[:, None]
    for (layer, _), buffer in kv.buffers.items():
        end = lengths.total if layer == 1 else lengths.resident
        buffer[:, :, end - tokens : end] = positions


def test_shapes():
    kv = cache()
    assert kv.buffers[0, "key"].shape == (1, 1, WINDOW + 4, 2)
    assert kv.buffers[1, "value"].shape == (1, 2, 64, 4)
    assert (2, "key") not in kv.buffers  # it shares
    assert kv.nbytes == 2 * 4 * (9 * 2 + 2 * 64 * 4)


def test_a_short_context_leaves_room_for_query_heads_as_rows():
    kv = cache(context=6)
    assert kv.buffers[1, "key"].shape == (1, 2, LEAST_KEPT + 1, 4)
    assert kv.layout.most_kept == LEAST_KEPT
    assert cache().layout.most_kept == 63


def test_a_short_context_needs_no_window():
    assert cache(context=6).buffers[0, "key"].shape == (1, 1, 6, 2)


@given(st.lists(st.integers(1, 4), max_size=15))
def test_the_window_is_always_resident_in_order(chunks):
    kv = cache()
    for tokens in chunks:
        before = kv.total
        write(kv, tokens)
        assert kv.total == before + tokens
        rows = kv.buffers[0, "key"][0, 0, : kv.resident, 0]
        assert rows.tolist() == list(range(kv.total - kv.resident, kv.total))
        # The chunk's first token must see the window - 1 tokens before it.
        assert kv.resident >= min(kv.total, tokens + WINDOW - 1)
        assert kv.resident <= WINDOW + 4
        assert kv.buffers[1, "key"][0, 0, : kv.total, 0].tolist() == list(range(kv.total))


@given(st.lists(st.sampled_from([1, 1, 1, 4, 9]), max_size=12))
def test_rows_for_long_chunks_are_used_by_those_alone(chunks):
    kv = cache(context=200, largest=9)
    assert kv.buffers[0, "key"].shape == (1, 1, WINDOW + 9, 2)
    for tokens in chunks:
        before = min(kv.total, WINDOW - 1)
        write(kv, tokens)
        rows = kv.buffers[0, "key"][0, 0, : kv.resident, 0]
        assert rows.tolist() == list(range(kv.total - kv.resident, kv.total))
        assert before + tokens <= kv.resident <= WINDOW + max(tokens, 4)


def test_moving_happens_only_when_full():
    kv = cache()
    moved = []
    for _ in range(20):
        before = kv.resident
        write(kv, 1)
        moved.append(kv.resident < before)
    assert [index for index, flag in enumerate(moved) if flag] == [9, 14, 19]


def test_reset_keeps_the_buffers():
    kv = cache()
    write(kv, 4)
    buffer = kv.buffers[0, "key"]
    kv.reset()
    assert (kv.total, kv.resident) == (0, 0)
    assert kv.buffers[0, "key"] is buffer


def test_limits():
    kv = cache(context=6)
    for tokens in (0, 5):
        with pytest.raises(EdgeRuntimeError, match="a chunk of"):
            kv.advance(tokens)
    kv.advance(4)
    with pytest.raises(EdgeRuntimeError, match="7 tokens, the context is 6"):
        kv.advance(3)
    assert kv.total == 4
