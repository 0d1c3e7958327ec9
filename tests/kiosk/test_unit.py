"""The kiosk's unit, by systemd's own judgement."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "systemd"
NAME = "edge-runtime-kiosk.service"
EXPOSURE = 4.0

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def test_it_is_clean(tmp_path):
    # The programs are not here, or not where they will be: everything else must be right.
    for unit in FOLDER.glob("*.service"):
        text = unit.read_text()
        for program in ("/usr/bin/cage", "/opt/edge-runtime/venv/bin/edge-runtime"):
            text = text.replace(program, "/bin/true")
        (tmp_path / unit.name).write_text(text)
    result = analyze("verify", str(tmp_path / NAME))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_it_is_as_closed_as_a_browser_can_be():
    result = analyze("security", "--offline=true", f"--threshold={int(10 * EXPOSURE)}", str(FOLDER / NAME))
    if "nrecognized" in result.stderr:
        pytest.skip("this systemd-analyze cannot look at files")
    assert result.returncode == 0, result.stdout[-300:]


def test_it_comes_after_the_daemon_and_comes_back():
    text = (FOLDER / NAME).read_text()
    assert "After=edge-runtime.service" in text
    assert "Restart=always" in text
    assert "Requires=" not in text  # the page outlives a restart of the daemon
    assert "PAMName=" not in text  # logind would take the browser out of the unit, and away from its limits
