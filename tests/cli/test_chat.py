"""The conversation in the terminal: rules with a scripted model, keys and signals through a real terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from PIL import Image

import edge_runtime
from edge_runtime.cli.main import main
from edge_runtime.engine.model import Model
from tests.engine.fake import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine("One.", "Two.", "Three.")
    monkeypatch.setattr(edge_runtime, "load", lambda *_, **__: Model(fake), raising=False)
    return fake


def talk(monkeypatch: pytest.MonkeyPatch, *lines: str, options: tuple[str, ...] = ()) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return main(["chat", *options])


def test_history_grows(engine, monkeypatch, capsys):
    assert talk(monkeypatch, "Hello", "And then?", options=("--system", "Be short.")) == 0
    assert capsys.readouterr().out == "One.\nTwo.\n"
    assert [(message["role"], message["content"]) for message in engine.requests[1].messages] == [
        ("system", "Be short."),
        ("user", "Hello"),
        ("assistant", "One."),
        ("user", "And then?"),
    ]
    assert engine.requests[1].overflow == "drop_oldest_turns"
    assert engine.closed


def test_reset_forgets_all_but_the_system_prompt(engine, monkeypatch):
    talk(monkeypatch, "Hello", "/reset", "Hi", options=("--system", "Be short."))
    assert [message["role"] for message in engine.requests[1].messages] == ["system", "user"]


def test_media_go_with_the_next_question_and_stay_in_the_history(engine, monkeypatch, tmp_path: Path):
    Image.new("RGB", (60, 50)).save(tmp_path / "a b.png")
    soundfile.write(tmp_path / "c.wav", np.zeros(1600), 16_000)
    talk(monkeypatch, f"/image {tmp_path / 'a b.png'}", f"/audio '{tmp_path / 'c.wav'}'", "What?", "And?")
    first, second = engine.requests
    assert [item["type"] for item in first.messages[0]["content"]] == ["image", "audio", "text"]
    assert second.messages[0] == first.messages[0]
    assert second.messages[2]["content"] == "And?"


def test_mistakes_are_one_line_each_and_the_conversation_goes_on(engine, monkeypatch, capsys, tmp_path: Path):
    (tmp_path / "a.png").write_text("no image")
    talk(monkeypatch, "/nope", "/image", "/image none.png", f"/image {tmp_path / 'a.png'}", "", "Hello", "/help")
    captured = capsys.readouterr()
    assert captured.out.startswith("One.\n/image FILE")
    lines = captured.err.splitlines()
    assert len(lines) == 4
    assert "unknown command /nope" in lines[0]
    assert "none.png: no such file" in lines[2]
    assert engine.requests[0].messages == [{"role": "user", "content": "Hello"}]


def test_quit(engine, monkeypatch):
    assert talk(monkeypatch, "/quit", "Hello") == 0
    assert engine.requests == []


class Terminal:
    """`edge-runtime chat` in a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "edge_runtime", "chat", *words]
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str, seconds: float = 60) -> str:
        """Waits for it; forgets what came before its end."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} did not come: {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 4096).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert re.search(pattern, self.seen), f"it ended without {pattern!r}: {self.seen!r}"
        self.seen = self.seen[found.end() :]
        return found[0]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal("--context", "2048", "--max-tokens", "1500", "--temperature", "0")
    yield made
    made.close()


def test_a_conversation_through_a_terminal(terminal):
    terminal.expect(r"Ctrl-D ends.*\n")
    terminal.expect("> ")
    terminal.type("Who are yoo\x7fu?\n")
    terminal.expect("I am Nano")
    terminal.expect("> ")
    terminal.type("/res\t\n")
    terminal.expect(r"\(forgotten\)")
    terminal.expect("> ")
    terminal.type("half a line")
    time.sleep(0.3)
    terminal.process.send_signal(signal.SIGINT)
    terminal.expect(r"\(Ctrl-D ends\)")
    terminal.type("\x1b[A\x1b[A\n")  # two lines up: the first question again
    terminal.expect("I am Nano")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(monkeypatch, engine, capsys):
    class Endless(FakeEngine):
        def _pieces(self, answer):
            request = self.requests[-1]
            for number in range(1000):
                if number == 3 and len(self.requests) == 1:
                    signal.raise_signal(signal.SIGINT)
                if request.cancel.is_set():
                    raise edge_runtime.EdgeRuntimeError("the request was cancelled", "cancelled")
                if number == 5:
                    break
                yield from super()._pieces("x")

    fake = Endless()
    monkeypatch.setattr(edge_runtime, "load", lambda *_, **__: Model(fake), raising=False)
    before = signal.getsignal(signal.SIGINT)
    assert talk(monkeypatch, "Count", "Again") == 0
    assert capsys.readouterr().out == "xxx (stopped)\nxxxxx\n"
    assert fake.requests[1].messages[1]["content"] == "xxx"
    assert signal.getsignal(signal.SIGINT) is before
