from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.matrix import Stacked, Stored, chunks, head_rows
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


def test_matrices_reorder_and_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"a": A})
    with Checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.get("a")
        order = np.array([9, 0, 4, 4, 2, 1, 3, 5, 6, 7, 8, 8])
        columns = np.array([5, 4, 3, 2, 1, 0])
        matrix = Stacked([Stored(tensor), Stored(tensor, order, columns), Stored(tensor, first=2, last=5)])
        expected = np.concatenate([A, A[order][:, columns], A[2:5]])
        assert matrix.shape == expected.shape == (25, 6)
        monkeypatch.setattr("edge_runtime.export.matrix._CHUNK", 24)
        seen: list[int] = []
        parts = list(chunks(matrix, seen.append))
        assert [start for start, _ in parts] == [0, 4, 8, 12, 16, 20, 24]
        assert (np.concatenate([rows for _, rows in parts]) == expected).all()
        assert sum(seen) == expected.size
    assert head_rows(2, 4, np.array([1, 0, 3, 2])).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
