from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks import export
from tests.export.tiny import write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def test_table_and_json_of_a_real_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model", dtype="BF16")
    words = [str(tmp_path / "model"), "--out", str(tmp_path), "--threads", "1"]
    export.main([*words, "--recipe", "int4", "--recipe", "fp32"])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4
    assert rows[2].startswith("| model | int4 | 0.00 |")
    export.main([*words, "--json", "--max-memory", "1G", "--ple-bits", "8"])
    (run,) = json.loads(capsys.readouterr().out)
    assert run["bundle_bytes"] == sum(run["sizes"].values())
    assert 10e6 < run["peak_rss"] <= run["planned_rss"] < 1 << 30
    assert 0 < run["cpu_seconds"] < 2 * run["seconds"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_failed_export_says_why_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        export.main([str(tmp_path / "nowhere"), "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "nowhere does not exist" in capfd.readouterr().err
