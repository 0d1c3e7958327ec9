from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.engine.llama import program
from edge_runtime.engine.llama.options import Options
from edge_runtime.errors import EdgeRuntimeError

NEEDED = "\n".join(program._NEEDED)


def _script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_named_program_wins_and_its_build_and_devices_are_told(tmp_path, monkeypatch):
    devices = "Available devices:\n  CUDA0: Orin (7620 MiB, 5000 MiB free)"
    answers = f'case $1 in --help) echo "{NEEDED}";; --version) echo "version: 7 (abc)";; *) echo "{devices}";; esac'
    named = _script(tmp_path / "llama-server", answers)
    found = program.find_program(named)
    assert (found.path, found.version) == (named, "7 (abc)")
    assert found.devices() == [program.Device("Orin", 7620 << 20, 5000 << 20)]
    assert program.describe(named) == f"{named} (7 (abc)), on Orin"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert program.find_program().path == named
    other = _script(tmp_path / "other", answers)
    monkeypatch.setenv(program.VARIABLE, str(other))
    assert program.find_program().path == other


def test_an_old_program_is_the_wrong_version_and_says_what_it_lacks(tmp_path):
    old = _script(tmp_path / "llama-server", 'echo "--ctx-checkpoints --cors-origins"; echo "version: 5 (x)" >&2')
    with pytest.raises(EdgeRuntimeError, match=r"\(5 \(x\)\) is the wrong version: it lacks --lazy-mode"):
        program.find_program(old)


def test_a_program_that_cannot_be_run_is_said_so(tmp_path):
    with pytest.raises(EdgeRuntimeError, match="is no program"):
        program.find_program(tmp_path / "nothing")
    broken = tmp_path / "llama-server"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    with pytest.raises(EdgeRuntimeError, match="cannot be run"):
        program.find_program(broken)


def test_without_any_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(program, "PACKAGE", "no-such-package")
    with pytest.raises(EdgeRuntimeError, match=r"pip install edge-runtime\[gguf\]"):
        program.find_program()


def test_the_key_is_no_argument_and_nothing_that_grows_is_on():
    options = Options(Path("x.gguf"), context=512, threads=2)
    words = options.arguments(1234)
    assert "--api-key" not in words
    for flag, value in (("--ctx-checkpoints", "0"), ("--cache-ram", "0"), ("--host", "127.0.0.1"), ("--parallel", "1")):
        assert words[words.index(flag) + 1] == value
    assert "*" not in words[words.index("--cors-origins") + 1]
