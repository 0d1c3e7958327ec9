"""`optimum-cli export edge-runtime`, by the real optimum-cli."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from edge_runtime.bundle.manifest import read_manifest, verify
from edge_runtime.cli.main import main
from tests.export.tiny import write_checkpoint


def installed() -> bool:
    try:
        importlib.metadata.version("optimum")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


pytestmark = [
    pytest.mark.optimum,
    pytest.mark.skipif(not installed(), reason="optimum is not installed: pip install 'edge-runtime[optimum]'"),
]


def optimum_cli(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_it_is_among_the_exporters():
    shown = optimum_cli("export", "--help")
    assert shown.returncode == 0
    assert "edge-runtime" in shown.stdout


def test_its_options_are_those_of_edge_runtime_export(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    options = {word for word in capsys.readouterr().out.split() if word.startswith("--")}
    shown = optimum_cli("export", "edge-runtime", "--help").stdout
    assert options <= set(shown.split())
    assert "--model" in shown


def test_a_checkpoint_becomes_a_bundle(tmp_path):
    write_checkpoint(tmp_path / "model")
    done = optimum_cli("export", "edge-runtime", "--model", str(tmp_path / "model"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "int4" in done.stdout
    assert verify(tmp_path / "out") == []
    assert read_manifest(tmp_path / "out").name == "model"


def test_what_is_wrong_is_one_line(tmp_path):
    done = optimum_cli("export", "edge-runtime", "--model", str(tmp_path / "nowhere"), str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"edge-runtime: {tmp_path / 'nowhere'} does not exist"
    assert "Traceback" not in done.stderr
