"""The service's unit, by systemd's own judgement."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd/edge-runtime.service"
EXPOSURE = 1.6

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def test_it_is_clean(tmp_path):
    # The command is not where it will be: everything else must be right.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/edge-runtime/venv/bin/edge-runtime", "/bin/true"))
    result = analyze("verify", str(unit))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_it_is_closed():
    result = analyze("security", "--offline=true", f"--threshold={int(10 * EXPOSURE)}", str(UNIT))
    if "Unrecognized" in result.stderr or "unrecognized" in result.stderr:
        pytest.skip("this systemd-analyze cannot look at files")
    assert result.returncode == 0, result.stdout[-300:]


def test_what_onnx_runtime_and_sound_need_stays_open():
    result = analyze("security", "--offline=true", "--json=short", str(UNIT))
    if result.returncode:
        pytest.skip("this systemd-analyze cannot look at files")
    open_ones = {check["json_field"] for check in json.loads(result.stdout) if not check["set"]}
    assert {"ProcSubset", "PrivateDevices"} <= open_ones
    assert "MemoryDenyWriteExecute" not in open_ones
