"""`load` and `Model`: what Python programs use, and what the command line and the daemon are made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edge_runtime import media
from edge_runtime.bundle.manifest import is_bundle
from edge_runtime.engine import speech
from edge_runtime.engine.protocol import Request, Sampling, Transcript
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.engine.protocol import Engine, Info, Piece
    from edge_runtime.media import AudioSource

MIN_SPEECH_S = 0.1
"""Shorter scraps at the end of a recording are not worth a question."""


class Model:
    """A loaded model. Use it as a context manager, or call `close` when done.

    Example:
        with edge_runtime.load() as model:
            print("".join(piece.text for piece in model.chat([{"role": "user", "content": "Hello"}])))
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def info(self) -> Info:
        """`{"name", "modalities", "context"}`."""
        return self._engine.info

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        schema: Mapping[str, Any] | None = None,
        think: bool = False,
        image_tokens: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Generator[Piece, None, None]:
        """Answers a conversation, piece by piece.

        Args:
            messages: Hugging Face's chat format; content items are `{"type": "text", "text"}`,
                `{"type": "image", "image": path | bytes | PIL image}` and
                `{"type": "audio", "audio": path | bytes | float32 samples at 16 kHz}`.
            max_tokens: Tokens to generate at most.
            temperature: 0 for the likeliest answer; None for the model's own default, as with the next three.
            top_p: Probability mass to sample from.
            top_k: Tokens to sample from.
            seed: For answers that can be repeated.
            stop: Strings that end the answer.
            tools: `{"type": "function", "function": {"name", "description", "parameters"}}` each.
            schema: Refused: this version cannot hold an answer to a JSON schema.
            think: Let the model think first.
            image_tokens: Soft tokens per image: 70, 140, 280, 560 or 1120.
            cancel: Set it from another thread to stop.

        Returns:
            Pieces; the last one has `finish_reason`, `usage`, `timing`, `tool_calls` and `thoughts`.

        Raises:
            EdgeRuntimeError: At once for a request that cannot be answered; while iterating, when cancelled.
        """
        if schema is not None:
            raise EdgeRuntimeError("this version cannot hold an answer to a JSON schema")
        return self._engine.run(
            Request(
                messages=messages,
                tools=tools or (),
                think=think,
                image_tokens=image_tokens,
                max_tokens=max_tokens,
                sampling=Sampling(temperature, top_k, top_p, seed),
                stop=[stop] if isinstance(stop, str) else stop or (),
                cancel=cancel,
            )
        )

    def complete(
        self,
        text: str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        cancel: threading.Event | None = None,
    ) -> Generator[Piece, None, None]:
        """Continues `text` as it stands, without the chat template; the rest as in `chat`."""
        return self._engine.run(
            Request(
                raw=text,
                max_tokens=max_tokens,
                sampling=Sampling(temperature, top_k, top_p, seed),
                stop=[stop] if isinstance(stop, str) else stop or (),
                cancel=cancel,
            )
        )

    def transcribe(
        self,
        source: AudioSource,
        language: str = "English",
        *,
        translate_to: str | None = None,
        cancel: threading.Event | None = None,
    ) -> Transcript:
        """Speech to text, of any length: recordings too long for the model are cut where they are quiet.

        Args:
            source: A WAV, FLAC, OGG or MP3 file, its bytes, or float32 mono samples at 16 kHz.
            language: What is spoken, by its English name.
            translate_to: Give a translation into this language as the text.
            cancel: Set it from another thread to stop.

        Raises:
            EdgeRuntimeError: The model takes no audio, the source cannot be read, or `cancelled`.
        """
        limit = self._engine.max_audio_seconds
        if not limit:
            raise EdgeRuntimeError("this model takes no audio", "unsupported_media")
        samples = media.load_audio(source)
        prompt = speech.transcribe_prompt(language, translate_to)
        rate = media.SAMPLE_RATE
        segments: list[dict[str, Any]] = []
        originals: list[str] = []
        for start, end in speech.cut(samples, rate, limit):
            piece = samples[start:end]
            if len(piece) < MIN_SPEECH_S * rate or speech.is_silent(piece, rate):
                continue
            text = self._ask_about(piece, prompt, cancel)
            if translate_to is not None:
                original, text = speech.split_translation(text, translate_to)
                originals.append(original)
            if text:
                segments.append({"start": round(start / rate, 2), "end": round(end / rate, 2), "text": text})
        return Transcript(" ".join(segment["text"] for segment in segments), segments, " ".join(originals))

    def close(self) -> None:
        """Frees the model."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask_about(self, samples: NDArray[np.float32], prompt: str, cancel: threading.Event | None) -> str:
        content = [{"type": "audio", "audio": samples}, {"type": "text", "text": prompt}]
        # Speech recognition has one right answer: always the likeliest.
        pieces = self.chat([{"role": "user", "content": content}], temperature=0, cancel=cancel)
        return "".join(piece.text for piece in pieces).strip()


def load(path: str | Path | None = None, *, threads: int | None = None, context: int | None = None) -> Model:
    """Loads a model.

    Args:
        path: A bundle folder; None for the built-in model.
        threads: To compute with; None: the cores there are, four at most.
        context: Tokens that prompt and answer may have together; None: 4096, or the model's own limit if that is less.

    Raises:
        EdgeRuntimeError: One line on what is wrong with `path`.
    """
    from edge_runtime.engine.onnx.engine import OnnxEngine  # noqa: PLC0415

    if path is not None:
        return Model(OnnxEngine(_check_folder(Path(path)), context=context, threads=threads))
    from edge_runtime import builtin  # noqa: PLC0415

    return Model(OnnxEngine(builtin.bundle_path(), context=context, threads=threads, name=builtin.NAME))


def _check_folder(path: Path) -> Path:
    if path.suffix.lower() == ".gguf":
        raise EdgeRuntimeError(f"{path}: this version runs bundles, not GGUF files (edge-runtime export makes one)")
    if not path.exists():
        raise EdgeRuntimeError(f"{path}: no such folder")
    if not path.is_dir():
        raise EdgeRuntimeError(f"{path} is a file; a model is a bundle folder")
    if not is_bundle(path):
        if (path / "config.json").is_file():
            raise EdgeRuntimeError(
                f"{path} is a checkpoint: make a bundle of it with edge-runtime export {path} BUNDLE"
            )
        raise EdgeRuntimeError(f"{path} is no bundle: it has no bundle.json")
    return path
