from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.bundle.tables import Table, TableSpec, write_table
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from pathlib import Path

VALUES = np.random.default_rng(0).standard_normal((50, 96)).astype(np.float32)
VALUES[3] = 0
IDS = np.array([49, 3, 0, 3, 17, 49])


@pytest.mark.parametrize(("bits", "block", "worst"), [(32, 32, 0.0), (8, 32, 0.006), (4, 32, 0.12), (4, 16, 0.12)])
def test_round_trip(tmp_path: Path, bits: int, block: int, worst: float) -> None:
    spec = TableSpec.make(rows=50, dim=96, bits=bits, block=block, multiplier=2.5)
    write_table(tmp_path / "t", spec, (VALUES[i : i + 7] for i in range(0, 50, 7)))
    assert (tmp_path / "t").stat().st_size == 50 * spec.row_bytes
    with Table.open(tmp_path / "t", spec) as table:
        rows = table.read(IDS)
        assert rows.dtype == np.float32
        assert rows.shape == (6, 96)
        error = np.linalg.norm(rows / 2.5 - VALUES[IDS]) / np.linalg.norm(VALUES[IDS])
        assert error <= worst + 1e-6
        assert not rows[1].any()
        for start, stop in ((0, 32), (32, 96), (64, 64), (32, None)):
            assert (table.read(IDS, start, stop) == rows[:, start:stop]).all()
        assert table.read(np.array([], np.int64)).shape == (0, 96)


def test_four_bit_row_layout(tmp_path: Path) -> None:
    """The layout that the format promises, byte by byte."""
    row = np.zeros((1, 32), np.float32)
    row[0, :3] = [-8.0, 7.0, 1.0]
    spec = TableSpec.make(rows=1, dim=32, bits=4)
    assert spec.row_bytes == 32  # 16 of values, 2 of scale, padded
    write_table(tmp_path / "t", spec, [row])
    data = (tmp_path / "t").read_bytes()
    assert data[:3] == bytes([0 | 15 << 4, 9 | 8 << 4, 8 | 8 << 4])
    assert np.frombuffer(data[16:18], np.float16)[0] == 1.0
    assert data[18:] == bytes(14)


def test_real_sizes_of_a_row() -> None:
    assert TableSpec.make(rows=1, dim=8960, bits=4).row_bytes == 5040
    assert TableSpec.make(rows=1, dim=1536, bits=8).row_bytes == 1632
    assert TableSpec.make(rows=1, dim=1536, bits=32).row_bytes == 6144


def test_mistakes_are_errors(tmp_path: Path) -> None:
    spec = TableSpec.make(rows=50, dim=96, bits=4)
    write_table(tmp_path / "t", spec, [VALUES])
    with Table.open(tmp_path / "t", spec) as table:
        for ids in ([50], [-1], [0, 1000]):
            with pytest.raises(EdgeRuntimeError, match="outside a table of 50 rows"):
                table.read(np.array(ids))
        with pytest.raises(EdgeRuntimeError, match="no whole blocks"):
            table.read(IDS, 16)
    with pytest.raises(EdgeRuntimeError, match="manifest says"):
        Table.open(tmp_path / "t", TableSpec.make(rows=51, dim=96, bits=4))
    with pytest.raises(EdgeRuntimeError, match="No such file"):
        Table.open(tmp_path / "none", spec)
    with pytest.raises(EdgeRuntimeError, match="cannot be cut"):
        TableSpec.make(rows=1, dim=40, bits=4)
    with pytest.raises(EdgeRuntimeError, match="2 bits"):
        TableSpec.make(rows=1, dim=32, bits=2)
    with pytest.raises(EdgeRuntimeError, match="50 are expected"):
        write_table(tmp_path / "t", spec, [VALUES[:40]])


def test_threads_may_share_a_table(tmp_path: Path) -> None:
    spec = TableSpec.make(rows=50, dim=96, bits=8)
    write_table(tmp_path / "t", spec, [VALUES])
    with Table.open(tmp_path / "t", spec) as table, ThreadPoolExecutor(4) as pool:
        whole = table.read(np.arange(50))
        orders = [np.random.default_rng(i).integers(0, 50, 200) for i in range(16)]
        for order, rows in zip(orders, pool.map(table.read, orders), strict=True):
            assert (rows == whole[order]).all()
