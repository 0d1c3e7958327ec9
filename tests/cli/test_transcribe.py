from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

import edge_runtime
from edge_runtime.cli.main import main
from edge_runtime.engine.model import Model
from tests.engine.fake import FakeEngine
from tests.perception.sounds import SoundServer, silence, speech

SENTENCE = "Turn on the light in the kitchen."

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine("Hello there.")
    monkeypatch.setattr(edge_runtime, "load", lambda *_, **__: Model(fake), raising=False)
    return fake


@pytest.fixture
def voice(tmp_path: Path) -> str:
    soundfile.write(tmp_path / "voice.wav", speech(SENTENCE), 16_000)
    return str(tmp_path / "voice.wav")


def test_the_text_is_printed(engine, voice, capsys):
    assert main(["transcribe", voice]) == 0
    assert capsys.readouterr().out == "Hello there.\n"
    assert engine.closed


def test_json(engine, voice, capsys):
    assert main(["transcribe", "--json", voice]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"text", "segments"}
    assert answer["text"] == "Hello there."
    assert [part["text"] for part in answer["segments"]] == ["Hello there."]
    seconds = len(speech(SENTENCE)) / 16_000
    assert answer["segments"][0]["start"] < 0.3
    assert answer["segments"][0]["end"] == pytest.approx(seconds, abs=0.3)


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
        (["--mic", "a.wav"], "give a FILE or --mic, not both"),
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


@pytest.fixture
def sound_server(tmp_path: Path) -> Iterator[SoundServer]:
    with pytest.MonkeyPatch.context() as environment:
        server = SoundServer(tmp_path, environment)
        yield server
        server.close()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_microphone_is_written_down_until_ctrl_c(sound_server, as_json):
    words = [sys.executable, "-m", "edge_runtime", "transcribe", "--mic", *(["--json"] if as_json else [])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "Ctrl-C ends" in process.stderr.readline()
            sentence = np.concatenate([silence(0.3), speech("Turn on the kitchen light."), silence(1.5)])
            lines = process.stdout
            assert lines is not None
            for _ in range(5):  # a sound server on a busy machine may drop some
                sound_server.play(sentence).wait(30)
                if as_json:
                    time.sleep(4)  # nothing says that the sentence was written down
                    break
                if select.select([lines], [], [], 10)[0]:
                    assert "light" in lines.readline().lower()
                    break
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    if as_json:
        answer = json.loads(out)
        assert "light" in answer["text"].lower()
        assert answer["segments"][0]["start"] < answer["segments"][0]["end"]


def test_a_machine_without_a_microphone(engine, monkeypatch, tmp_path: Path, capsys):
    (tmp_path / "asound.conf").write_text("")
    monkeypatch.setenv("ALSA_CONFIG_PATH", str(tmp_path / "asound.conf"))
    assert main(["transcribe", "--mic", "--device", "nobody's microphone"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
