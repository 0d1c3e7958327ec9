from __future__ import annotations

import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.bundle.checksums import PAGE, measure
from edge_runtime.bundle.rows import encode, prefix_bytes
from edge_runtime.bundle.tables import Table, TableSpec, write_table
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from edge_runtime.bundle.checksums import Measured

VALUES = np.random.default_rng(0).standard_normal((50, 96)).astype(np.float32)
VALUES[3] = 0
IDS = np.array([49, 3, 0, 3, 17, 49])


def write(path: Path, spec: TableSpec, values: np.ndarray = VALUES, step: int = 7) -> Measured:
    return write_table(path, spec, (encode(values[i : i + step], spec) for i in range(0, len(values), step)))


def wide(rows: int = 60, dim: int = 8960, bits: int = 4, block: int = 64) -> tuple[TableSpec, np.ndarray]:
    """A table as wide as a real one."""
    values = np.random.default_rng(1).standard_normal((rows, dim)).astype(np.float32)
    return TableSpec.make(rows=rows, dim=dim, bits=bits, block=block), values


@pytest.mark.parametrize(("bits", "block", "worst"), [(32, 32, 0.0), (8, 32, 0.006), (4, 32, 0.09), (4, 16, 0.08)])
def test_round_trip(tmp_path: Path, bits: int, block: int, worst: float) -> None:
    spec = TableSpec.make(rows=50, dim=96, bits=bits, block=block, multiplier=2.5)
    write(tmp_path / "t", spec)
    assert (tmp_path / "t").stat().st_size == spec.size
    with Table(tmp_path / "t", spec) as table:
        rows = table.read(IDS)
        assert rows.dtype == np.float32
        assert rows.shape == (6, 96)
        error = np.linalg.norm(rows / 2.5 - VALUES[IDS]) / np.linalg.norm(VALUES[IDS])
        assert error <= worst + 1e-6
        assert not rows[1].any()
        for start, stop in ((0, 32), (32, 96), (64, 64), (32, None)):
            assert (table.read(IDS, start, stop) == rows[:, start:stop]).all()
        assert table.read(np.array([], np.int64)).shape == (0, 96)


@pytest.mark.parametrize(
    ("dim", "bits", "block", "size", "pages"),
    [
        (8960, 4, 64, 1_227_161_600, 2),  # E2B, per layer
        (8960, 4, 32, 1_252_708_352, 2),
        (8960, 8, 64, 2_415_919_104, 3),
        (10752, 4, 32, 1_610_612_736, 2),  # E4B, per layer
        (1536, 8, 32, 419_430_400, 2),  # E2B, tokens
        (1536, 32, 32, 1_610_612_736, 2),
        (256, 4, 32, 38_350_848, 1),
    ],
)
def test_real_rows_touch_as_few_pages_as_their_length_allows(
    dim: int, bits: int, block: int, size: int, pages: int
) -> None:
    spec = TableSpec.make(rows=262144, dim=dim, bits=bits, block=block)
    length = prefix_bytes(spec, dim)
    starts = [spec.position(row) for row in range(5000)]
    assert max((start % PAGE + length - 1) // PAGE + 1 for start in starts) == pages
    assert min(after - start for start, after in itertools.pairwise(starts)) >= length
    assert all(start % 16 == 0 for start in starts)
    assert spec.position(262143) + length <= spec.size == size


@pytest.mark.parametrize("step", [1, 7, 23, 60])
def test_rows_that_share_pages_come_back(tmp_path: Path, step: int) -> None:
    spec, values = wide()
    assert (spec.group_rows, spec.group_bytes) == (7, 8 * PAGE)
    measured = write(tmp_path / "t", spec, values, step)
    assert measured.entry.size == spec.size == 9 * 8 * PAGE
    found = measure(tmp_path / "t", PAGE)
    assert found.entry == measured.entry
    assert (found.crcs == measured.crcs).all()
    with Table(tmp_path / "t", spec, measured.crcs) as table:
        rows = table.read(np.arange(60))
        assert np.linalg.norm(rows - values) / np.linalg.norm(values) < 0.092
        order = np.array([59, 0, 13, 6, 7, 13])
        assert (table.read(order) == rows[order]).all()
        assert (table.read(order, 3840) == rows[order, 3840:]).all()


def test_mistakes_are_errors(tmp_path: Path) -> None:
    spec = TableSpec.make(rows=50, dim=96, bits=4)
    write(tmp_path / "t", spec)
    with Table(tmp_path / "t", spec) as table:
        for ids in ([50], [-1], [0, 1000]):
            table.prefetch(np.array(ids))
            with pytest.raises(EdgeRuntimeError, match="outside a table of 50 rows"):
                table.read(np.array(ids))
        with pytest.raises(EdgeRuntimeError, match="no whole blocks"):
            table.read(IDS, 16)
    with pytest.raises(EdgeRuntimeError, match="manifest says"):
        Table(tmp_path / "t", TableSpec.make(rows=100, dim=96, bits=4))
    with pytest.raises(EdgeRuntimeError, match="No such file"):
        Table(tmp_path / "none", spec)
    with pytest.raises(EdgeRuntimeError, match="cannot be cut"):
        TableSpec.make(rows=1, dim=40, bits=4)
    with pytest.raises(EdgeRuntimeError, match="2 bits"):
        TableSpec.make(rows=1, dim=32, bits=2)
    with pytest.raises(EdgeRuntimeError, match="50 are expected"):
        write(tmp_path / "t", spec, VALUES[:40])


@pytest.mark.parametrize(("dim", "bits", "block"), [(8960, 4, 64), (96, 8, 32), (96, 32, 32)])
def test_a_flipped_bit_never_becomes_an_answer(tmp_path: Path, dim: int, bits: int, block: int) -> None:
    spec, values = wide(40, dim, bits, block)
    path = tmp_path / "t"
    measured = write(path, spec, values)
    sound = path.read_bytes()
    whole = np.arange(40)
    with Table(path, spec, measured.crcs) as table:
        expected = table.read(whole)
        rng = np.random.default_rng(2)
        for at in (0, len(sound) - 1, *rng.integers(0, len(sound), 60).tolist()):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << int(rng.integers(8))]) + sound[at + 1 :])
            page = at // PAGE * PAGE
            if page > spec.position(39) + prefix_bytes(spec, dim):
                assert (table.read(whole) == expected).all()  # only padding is hit
                continue
            with pytest.raises(EdgeRuntimeError, match=rf"t: row \d+ is damaged in bytes {page} to ") as caught:
                table.read(whole)
            row = int(str(caught.value).split("row ")[1].split()[0])
            start = spec.position(row)
            assert start // PAGE * PAGE <= at < start + prefix_bytes(spec, dim) + PAGE
            for sure in np.flatnonzero([at // PAGE < spec.position(i) // PAGE for i in range(40)])[:3].tolist():
                assert (table.read(np.array([sure])) == expected[sure]).all()
        path.write_bytes(sound[: len(sound) // 2])
        with pytest.raises(EdgeRuntimeError, match=r"row \d+ is cut off"):
            table.read(whole)


def test_threads_may_share_a_table(tmp_path: Path) -> None:
    spec = TableSpec.make(rows=50, dim=96, bits=8)
    measured = write(tmp_path / "t", spec)
    with Table(tmp_path / "t", spec, measured.crcs) as table, ThreadPoolExecutor(4) as pool:
        whole = table.read(np.arange(50))
        orders = [np.random.default_rng(i).integers(0, 50, 200) for i in range(16)]
        for order, rows in zip(orders, pool.map(table.read, orders), strict=True):
            assert (rows == whole[order]).all()


def read_bytes() -> int:
    """Bytes that this process has had read from disk."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes:")).split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="counts with /proc/self/io")
def test_a_cold_row_costs_its_own_pages(tmp_path: Path) -> None:
    """Rows of a table of 14 MB are read, and asked for beforehand, without any of the rest."""
    spec, values = wide(60)
    spec = TableSpec.make(rows=3000, dim=8960, bits=4, block=64)
    encoded = encode(values, spec)
    write_table(tmp_path / "t", spec, (encoded for _ in range(50)))
    ids = np.arange(0, 3000, 61)

    def cold() -> int:
        with (tmp_path / "t").open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return read_bytes()

    with Table(tmp_path / "t", spec) as table:
        before = cold()
        table.read(ids)
        cost = read_bytes() - before
        if not cost:
            pytest.skip("this file system is in memory, or does not count what it reads")
        assert cost == len(ids) * 2 * PAGE
        before = cold()
        table.prefetch(ids, 3840)
        table.read(ids, 0, 3840)
        assert len(ids) * PAGE < read_bytes() - before < len(ids) * 2 * PAGE
