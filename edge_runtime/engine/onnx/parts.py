"""The parts of a bundle that an engine begins with."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle import names
from edge_runtime.engine.onnx.session import give_back
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.engine.onnx.decoder import Decoder


_HEAD_START = 0.25
"""Seconds until ONNX Runtime is at work and needs no Python: who reads a tokenizer holds Python's lock to the end."""


def decoder_and_tokenizer(folder: Path, opened: Callable[[], Decoder], *, at_once: bool) -> tuple[Decoder, Tokenizer]:
    """Opens both.

    Args:
        folder: The bundle.
        opened: Opens its decoder, which keeps one core busy.
        at_once: Read the tokenizer meanwhile; otherwise what opening the decoder takes for a moment is gone before the
            tokenizer takes as much.

    Raises:
        EdgeRuntimeError: A file is missing or damaged.
    """
    if not at_once:
        decoder = opened()
        return decoder, _tokenizer(folder)
    done = threading.Event()

    def read() -> Tokenizer:
        done.wait(_HEAD_START)
        return _tokenizer(folder)

    with ThreadPoolExecutor(1) as aside:
        reading = aside.submit(read)
        try:
            decoder = opened()
        finally:
            done.set()
        return decoder, reading.result()


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(folder)
    give_back()
    return tokenizer


def text_file(path: Path) -> str:
    """What a bundle's file says.

    Raises:
        EdgeRuntimeError: It is missing or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EdgeRuntimeError(f"{path.parent} has no {path.name}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeRuntimeError(f"{path} cannot be read: {error}") from None


def generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json, {} if there is none.

    Raises:
        EdgeRuntimeError: It is no JSON.
    """
    path = folder / names.GENERATION_CONFIG
    if not path.exists():
        return {}
    try:
        config = json.loads(text_file(path))
    except ValueError as error:
        raise EdgeRuntimeError(f"{path} is damaged: {error}") from None
    return config if isinstance(config, dict) else {}
