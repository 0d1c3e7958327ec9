from __future__ import annotations

import logging

from edge_runtime import auto
from edge_runtime.machine import Memory
from tests.engine.llama.heads import head


def _model(folder, name, layers):
    """A GGUF of about `layers` times 4 MB."""
    values = {"general.architecture": "gemma4", "gemma4.block_count": layers, "gemma4.embedding_length": 64}
    tensors = [(f"blk.{i}.x.weight", (1 << 20,), 0, i * 4 << 20) for i in range(layers)]
    path = folder / f"{name}.gguf"
    data = head(values, tensors)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + (layers * 4 << 20))
    return path


def test_the_largest_that_fits_is_chosen_and_the_log_says_why(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "EDGE_RUNTIME_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    small, large = _model(tmp_path, "small", 2), _model(tmp_path, "large", 40)
    caplog.set_level(logging.INFO)
    assert auto.choose(have=Memory(10**9, 10**9)).resolve() == large
    assert auto.choose(have=Memory(10**9, 120_000_000)).resolve() == small
    assert auto.choose(have=Memory(10**9, 10_000_000)) is None
    assert "too large" in caplog.text
    assert "the built-in model answers" in caplog.text or "so the built-in model" in caplog.text
