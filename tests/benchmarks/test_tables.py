from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.tables import E2B, formats
from benchmarks.tables_read import WAYS, measure_way
from edge_runtime.bundle.rows import encode
from edge_runtime.bundle.tables import TableSpec, write_table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(sys.platform != "linux", reason="counts with /proc/self/io")
def test_every_way_reads_and_is_counted(tmp_path: Path) -> None:
    spec = TableSpec.make(rows=420, dim=E2B, bits=4, block=64)
    values = np.random.default_rng(0).standard_normal((420, E2B)).astype(np.float32)
    write_table(tmp_path / "table", spec, [encode(values, spec)])
    cost = {way: measure_way(tmp_path / "table", spec, way, 20).kib for way in WAYS}
    if not any(cost.values()):
        pytest.skip("this file system is in memory, or does not count what it reads")
    assert all(kib <= cost["mmap"] for kib in cost.values())
    assert cost["pread, FADV_RANDOM"] == cost["`Table.prefetch`, `Table.read`"] <= 8.0
    assert cost["the same, own layers only (a prompt)"] < 8.0


def test_formats_are_listed_with_size_and_error(capsys: pytest.CaptureFixture[str]) -> None:
    formats()
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| 4 | 64 | 1,227,161,600 | 2.00 | 1,610,612,736 | 2.00 | 9.0" in "\n".join(lines)
