from __future__ import annotations

import subprocess
import sys

import pytest

from edge_runtime.cli import main as cli
from edge_runtime.errors import EdgeRuntimeError


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: edge-runtime {verb}" in shown
    assert f"example:\n  edge-runtime {verb}" in shown


@pytest.mark.parametrize(
    "words", [[], ["nonsense"], ["serve", "--nonsense"], ["serve", "--config"], ["demo", "superfluous"]]
)
def test_bad_usage_is_one_line_and_exit_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert "--help" in shown.err


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (EdgeRuntimeError("the wav is\nempty"), 2, "edge-runtime: the wav is empty\n"),
        (PermissionError(13, "Permission denied", "/etc/x"), 2, "edge-runtime: /etc/x: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "edge-runtime: No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_goes_wrong_is_one_line(error, status, says, capsys, monkeypatch):
    from edge_runtime.cli import serve

    def fail(args):
        raise error

    monkeypatch.setattr(serve, "run", fail)
    assert cli.main(["serve"]) == status
    assert capsys.readouterr().err == says


def test_a_reader_that_left_is_no_error():
    command = f"{sys.executable} -m edge_runtime --help | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=30)
    assert result.stderr == ""
    assert result.stdout.startswith("usage: edge-runtime")


def test_help_imports_no_runtime():
    code = (
        "import sys; from edge_runtime.cli.main import build_parser; build_parser('serve');"
        "print(sorted({'onnxruntime', 'numpy', 'paho', 'PIL'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout.strip() == "[]"
