"""Text to sound, by a program that is on the box: espeak-ng, or piper where the owner has installed it and a voice."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.child import Child
from edge_runtime.perception.source import SourceLost

if TYPE_CHECKING:
    from collections.abc import Iterator

SENTENCE_S = 20.0
"""A program that takes longer than this for the next piece of a sentence hangs."""
ANSWER_S = 600.0
"""The longest wait for the next sentence of an answer."""
WAV_HEADER = 44


class Synthesis(Protocol):
    """One speech, from sentences to sound."""

    @property
    def rate(self) -> int:
        """Samples per second; known when the first piece of sound is."""

    def sound(self, sentences: Iterator[str]) -> Iterator[bytes]:
        """int16 mono, in pieces of any length, as early as they are there; raises `SourceLost`."""

    def kill(self) -> None:
        """Ends it now, from any thread."""


class Espeak:
    """espeak-ng or espeak: small, quick, in a hundred languages; one run for each sentence."""

    def __init__(self, program: str, voice: str | None, words_per_minute: int) -> None:
        """`voice` as in `espeak-ng --voices`; None is the program's own."""
        self._argv = [program, "--stdin", "--stdout", "-b", "1", "-s", str(words_per_minute)]
        self._argv += ["-v", voice] if voice else []

    def begin(self) -> Synthesis:
        """A new speech."""
        return _EspeakSynthesis(self._argv)


class Piper:
    """piper with one voice: it sounds like a person; one run for each speech, because it loads slowly."""

    def __init__(self, command: list[str], model: Path) -> None:
        """A voice.

        Args:
            command: How piper is started.
            model: The voice's `.onnx`; its `.onnx.json` lies beside it.

        Raises:
            EdgeRuntimeError: No such voice.
        """
        try:
            config = json.loads(model.with_name(f"{model.name}.json").read_text(encoding="utf-8"))
            self._rate = int(config["audio"]["sample_rate"])
        except (OSError, ValueError, KeyError, TypeError):
            raise EdgeRuntimeError(f"{model}: not a voice of piper, which needs {model.name}.json, too") from None
        self._argv = [*command, "--model", str(model), "--output-raw"]

    def begin(self) -> Synthesis:
        """A new speech."""
        return _PiperSynthesis(self._argv, self._rate)


Voice = Espeak | Piper


def find_voice(voice: str | None = None, words_per_minute: int = 165) -> Voice:
    """The voice that this box has.

    Args:
        voice: A voice of piper, as the path of its `.onnx`; else a voice of espeak-ng, such as `en-us`. None is
            espeak-ng's own.
        words_per_minute: How fast espeak-ng speaks.

    Raises:
        EdgeRuntimeError: The program isn't installed, or there is no such voice.
    """
    if voice is not None and voice.endswith(".onnx"):
        command = _piper()
        if command is None:
            raise EdgeRuntimeError(f"{voice} is a voice of piper, which is not installed: pip install piper-tts")
        return Piper(command, Path(voice))
    program = shutil.which("espeak-ng") or shutil.which("espeak")
    if program is None:
        raise EdgeRuntimeError("no voice: apt-get install espeak-ng")
    return Espeak(program, voice, words_per_minute)


class _EspeakSynthesis:
    def __init__(self, argv: list[str]) -> None:
        self.rate = 0
        self._argv = argv
        self._killed = False
        self._child: Child | None = None

    def sound(self, sentences: Iterator[str]) -> Iterator[bytes]:
        for sentence in sentences:
            with Child(self._argv, stdin=True) as child:
                self._child = child
                if self._killed:
                    return
                child.write(sentence.encode())
                child.end_input()
                header = child.read(WAV_HEADER, SENTENCE_S)
                self.rate = struct.unpack_from("<I", header, 24)[0]
                while piece := child.read_some(SENTENCE_S):
                    yield piece

    def kill(self) -> None:
        self._killed = True
        if self._child:
            self._child.kill()


class _PiperSynthesis:
    """Starts at once, so that the voice is loaded when the first sentence comes."""

    def __init__(self, argv: list[str], rate: int) -> None:
        self.rate = rate
        self._child = Child(argv, stdin=True)

    def sound(self, sentences: Iterator[str]) -> Iterator[bytes]:
        with self._child as child:
            threading.Thread(target=self._feed, args=(sentences,), name="piper", daemon=True).start()
            while piece := child.read_some(ANSWER_S):
                yield piece
            if child.process.wait(1.0):
                raise SourceLost(child.last_words() or "piper failed")

    def _feed(self, sentences: Iterator[str]) -> None:
        try:
            for sentence in sentences:
                self._child.write(sentence.encode() + b"\n")
        except SourceLost:
            return  # whoever reads its sound learns why
        self._child.end_input()

    def kill(self) -> None:
        self._child.kill()


def _piper() -> list[str] | None:
    if importlib.util.find_spec("piper") is not None:
        return [sys.executable, "-m", "piper"]
    program = shutil.which("piper")  # the earlier, C++ one
    return [program] if program else None
