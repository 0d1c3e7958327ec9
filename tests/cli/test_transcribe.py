from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

import edge_runtime
from edge_runtime.cli.main import main
from edge_runtime.engine.model import Model
from tests.engine.fake import FakeEngine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine("Hello there.")
    monkeypatch.setattr(edge_runtime, "load", lambda *_, **__: Model(fake), raising=False)
    return fake


@pytest.fixture
def voice(tmp_path: Path) -> str:
    soundfile.write(tmp_path / "voice.wav", np.random.default_rng(1).normal(0, 0.1, 32_000), 16_000)
    return str(tmp_path / "voice.wav")


def test_the_text_is_printed(engine, voice, capsys):
    assert main(["transcribe", voice]) == 0
    assert capsys.readouterr().out == "Hello there.\n"
    assert engine.closed


def test_json(engine, voice, capsys):
    assert main(["transcribe", "--json", voice]) == 0
    expected = {"text": "Hello there.", "segments": [{"start": 0.0, "end": 2.0, "text": "Hello there."}]}
    assert json.loads(capsys.readouterr().out) == expected


def test_language_and_translation(engine, voice, capsys):
    engine.answers = ["Bonjour.\nGerman: Guten Tag."]
    assert main(["transcribe", "--language", "French", "--translate-to", "German", voice]) == 0
    assert capsys.readouterr().out == "Guten Tag.\n"
    assert "in French, then translate it into German" in engine.requests[0].messages[0]["content"][1]["text"]


def test_silence_prints_nothing(engine, tmp_path: Path, capsys):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    assert main(["transcribe", str(tmp_path / "silence.wav")]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "give a FILE"),
        (["--mic"], "--mic: this version reads files only"),
        (["none.wav"], "none.wav: no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(engine, capsys, arguments, line):
    assert main(["transcribe", *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_a_file_of_no_bytes(engine, tmp_path: Path, capsys):
    (tmp_path / "empty.wav").write_bytes(b"")
    assert main(["transcribe", str(tmp_path / "empty.wav")]) == 2
    assert "empty.wav is empty" in capsys.readouterr().err
