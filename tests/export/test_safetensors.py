from __future__ import annotations

import ctypes
import json
import mmap
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.matrix import Stacked, Stored, head_rows
from edge_runtime.export.parallel import Pace, map_rows
from edge_runtime.export.safetensors import Checkpoint
from tests.export.tiny import to_bf16, write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

A = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_reads_every_float_type_and_any_rows(tmp_path: Path, dtype: str) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": A, "n": np.arange(3), "s": np.float32(2.5)}, dtype)
    with Checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.get("a", (10, 6))
        stored = {
            "F32": A,
            "F16": A.astype(np.float16).astype(np.float32),
            "BF16": (to_bf16(A).astype(np.uint32) << 16).view(np.float32),
        }[dtype]
        assert (tensor.read() == stored).all()
        assert (tensor.read(3, 5) == stored[3:5]).all()
        assert (tensor.take(np.array([7, 2, 2])) == stored[[7, 2, 2]]).all()
        assert checkpoint.get("n").integers().tolist() == [0, 1, 2]
        assert checkpoint.get("s", ()).read() == 2.5
        assert checkpoint.values() == 64


def test_scattered_rows_are_picked_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(1).standard_normal((1000, 3)).astype(np.float32)
    write_safetensors(tmp_path / "model.safetensors", {"a": table})
    monkeypatch.setattr("edge_runtime.export.safetensors._WINDOW", 120)  # ten rows
    with Checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.get("a")
        for rows in (np.random.default_rng(2).permutation(1000), np.array([999, 0, 999, 500]), np.array([3])):
            assert (tensor.take(rows) == table[rows]).all()


def cached(path: Path) -> float:
    """The part of a file that is in the page cache."""
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        seen = np.zeros(-(-len(pages) // mmap.PAGESIZE), np.uint8)
        where = ctypes.c_void_p(np.frombuffer(pages, np.uint8).ctypes.data)
        length, told = ctypes.c_size_t(len(pages)), ctypes.c_void_p(seen.ctypes.data)
        assert ctypes.CDLL(None).mincore(where, length, told) == 0
    return float((seen & 1).mean())


def test_what_was_read_does_not_stay_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.zeros((1 << 20, 12), np.float32)})
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path) > 0.1:
        pytest.skip("this file system has no page cache of its own")
    with Checkpoint(tmp_path) as checkpoint:
        for start in range(0, 1 << 20, 1 << 18):
            assert not checkpoint.get("a").read(start, start + (1 << 18)).any()
    assert cached(path) < 0.3


def test_unknown_dtype_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": A})
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F8X"'))
    with Checkpoint(tmp_path) as checkpoint:
        for read in (checkpoint.get("a").read, lambda: checkpoint.get("a").take(np.array([1]))):
            with pytest.raises(EdgeRuntimeError, match="a is stored as F8X"):
                read()


def test_embedding_scale_is_rounded_as_the_dtype_rounds(tmp_path: Path) -> None:
    for dtype, value in (("BF16", 39.25), ("F16", 39.1875), ("F32", float(np.float32(1536**0.5)))):
        write_safetensors(tmp_path / "model.safetensors", {"a": A}, dtype)
        with Checkpoint(tmp_path) as checkpoint:
            assert checkpoint.get("a").round(1536**0.5) == value


def test_shards(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"a": A})
    write_safetensors(tmp_path / "two.safetensors", {"b": A + 1})
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with Checkpoint(tmp_path) as checkpoint:
        assert sorted(checkpoint.names()) == ["a", "b"]
        assert (checkpoint.get("b").read() == A + 1).all()


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": A})
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:20], b"", b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(EdgeRuntimeError, match=r"model\.safetensors (is damaged|is empty)"):
            Checkpoint(tmp_path)


def test_missing_tensor_and_wrong_shape_are_named(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": A})
    with Checkpoint(tmp_path) as checkpoint:
        with pytest.raises(EdgeRuntimeError, match="no tensor b"):
            checkpoint.get("b")
        with pytest.raises(EdgeRuntimeError, match=r"a has shape \[10, 6\].* implies \[6, 10\]"):
            checkpoint.get("a", (6, 10))


def test_matrices_reorder_and_stack(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": A})
    with Checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.get("a")
        order = np.array([9, 0, 4, 4, 2, 1, 3, 5, 6, 7, 8, 8])
        columns = np.array([5, 4, 3, 2, 1, 0])
        matrix = Stacked([Stored(tensor), Stored(tensor, order, columns), Stored(tensor, first=2, last=5)])
        expected = np.concatenate([A, A[order][:, columns], A[2:5]])
        assert matrix.shape == expected.shape == (25, 6)
        seen: list[int] = []
        parts = list(map_rows(matrix.shape, matrix.rows, Pace(2, chunk_bytes=4 * 24), seen.append))
        assert [start for start, _ in parts] == [0, 4, 8, 12, 16, 20, 24]
        assert (np.concatenate([rows for _, rows in parts]) == expected).all()
        assert sum(seen) == expected.size
    assert head_rows(2, 4, np.array([1, 0, 3, 2])).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
