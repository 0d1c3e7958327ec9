from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from edge_runtime.engine.protocol import Info, Piece, Timing, Transcript, Usage
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class FakeModel:
    """Answers with the words of the prompt, one piece each; `gate` holds it back."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.error: Exception | None = None
        self.closed = False

    @property
    def info(self) -> Info:
        return {"name": "fake", "modalities": ["text", "image", "audio"], "context": 128}

    @property
    def chat(self) -> Callable[..., Generator[Piece, None, None]]:
        return self._chat

    def _chat(self, messages: Any, *, cancel: threading.Event, **options: Any) -> Generator[Piece, None, None]:
        self.calls.append((messages, options))
        if self.error:
            raise self.error
        self._wait(cancel)
        words = [item["text"] for item in messages[-1]["content"] if item["type"] == "text"] or ["heard"]
        for word in words[0].split():
            yield Piece(f"{word} ")
        yield Piece(
            "",
            finish_reason="stop",
            usage=Usage(prompt_tokens=1, completion_tokens=2),
            timing=Timing(load_s=0.0, first_token_s=0.1, decode_tokens_per_s=10.0),
            tool_calls=[{"name": "f", "arguments": {}}] if "tools" in options else [],
            thoughts="",
        )

    def transcribe(
        self,
        source: Any,
        *,
        cancel: threading.Event | None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Transcript:
        assert cancel is not None
        self.calls.append((source, options))
        self._wait(cancel)
        if on_text is not None:
            on_text("hel")
            on_text("lo")
        return Transcript("hello", [{"start": 0.0, "end": 1.0, "text": "hello"}], "")

    def close(self) -> None:
        self.closed = True

    def _wait(self, cancel: threading.Event) -> None:
        self.begun.set()
        while not self.gate.wait(0.01):
            if cancel.is_set():
                raise EdgeRuntimeError("cancelled", "cancelled")


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture(scope="session")
def wav() -> bytes:
    return make_wav(1.0)


@pytest.fixture(scope="session")
def png() -> bytes:
    return make_png(32, 32)


def make_wav(seconds: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.sin(np.arange(int(16000 * seconds)) / 5), 16000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def make_png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session", name="make_wav")
def wav_maker():
    return make_wav


@pytest.fixture(scope="session", name="make_png")
def png_maker():
    return make_png
