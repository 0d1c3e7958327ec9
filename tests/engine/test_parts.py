"""Decoder and tokenizer, opened one after the other or side by side."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.engine.onnx import parts
from edge_runtime.engine.onnx.parts import decoder_and_tokenizer
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set when the tokenizer was read."""
    event, before = threading.Event(), parts._tokenizer

    def watched(folder: Path) -> Tokenizer:
        try:
            return before(folder)
        finally:
            event.set()

    monkeypatch.setattr(parts, "_tokenizer", watched)
    return event


@pytest.mark.parametrize("at_once", [True, False])
def test_the_tokenizer_is_read_meanwhile_where_there_is_room(fp32_bundle: Path, read: threading.Event, at_once: bool):
    seen: list[bool] = []

    def opened() -> Any:
        seen.append(read.wait(10 if at_once else 0.5))
        return "decoder"

    assert isinstance(decoder_and_tokenizer(fp32_bundle, opened, at_once=at_once)[1], Tokenizer)
    assert seen == [at_once]


def test_nobody_waits_when_the_decoder_is_open(fp32_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "_HEAD_START", 60.0)
    began = time.monotonic()
    decoder_and_tokenizer(fp32_bundle, lambda: None, at_once=True)  # type: ignore[arg-type, return-value]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("at_once", [True, False])
def test_what_cannot_be_opened_is_said(tmp_path: Path, at_once: bool):
    def fails() -> Any:
        raise EdgeRuntimeError("no decoder")

    with pytest.raises(EdgeRuntimeError, match="no decoder"):
        decoder_and_tokenizer(tmp_path, fails, at_once=at_once)
    with pytest.raises(EdgeRuntimeError, match=r"has no tokenizer_config\.json"):
        decoder_and_tokenizer(tmp_path, lambda: None, at_once=at_once)  # type: ignore[arg-type, return-value]
