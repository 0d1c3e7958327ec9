from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from edge_runtime import inventory
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.export import export_checkpoint
from tests.export.tiny import write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def gguf(path: Path, architecture: str, *, before: bytes = b"", count: int = 1) -> Path:
    """The beginning of a GGUF file; `before` are `count - 1` values that come first."""
    key = b"general.architecture"
    value = architecture.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        struct.pack("<4sIQQ", b"GGUF", 3, 0, count)
        + before
        + struct.pack("<Q", len(key))
        + key
        + struct.pack("<IQ", 8, len(value))
        + value
        + bytes(100)
    )
    return path


def number(key: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, 7)


def test_a_gguf_says_what_it_is(tmp_path):
    assert inventory.architecture(gguf(tmp_path / "a.gguf", "gemma4")) == "gemma4"
    assert inventory.architecture(gguf(tmp_path / "b.gguf", "clip", before=number(b"x"), count=2)) == "clip"
    listed = struct.pack("<Q", 1) + b"x" + struct.pack("<IIQ", 9, 8, 1)
    assert inventory.architecture(gguf(tmp_path / "c.gguf", "gemma4", before=listed, count=2)) is None
    for name, data in {"text": b"hello", "cut": b"GGUF\3\0", "wild": b"GGUF" + b"\xff" * 40, "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        assert inventory.architecture(tmp_path / name) is None
    assert inventory.architecture(tmp_path / "missing") is None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_checkpoint(folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "mine" / "bundle", source={"checkpoint": "me/model"})
    path: Path = folder / "mine" / "bundle"
    return path


def test_bundles_and_ggufs_are_found_once(bundle, tmp_path):
    gguf(tmp_path / "model.gguf", "gemma4")
    gguf(tmp_path / "llama.gguf", "llama")
    gguf(tmp_path / "mmproj.gguf", "clip")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "model.gguf")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_text("{")
    found = inventory.look([bundle, bundle.parent, tmp_path, tmp_path / "missing"])
    assert [(model.name, model.kind) for model in found] == [("bundle", "int4"), ("broken", ""), ("link", "gguf")]
    assert found[0].source == "me/model"
    assert found[0].size == sum(path.stat().st_size for path in bundle.iterdir())
    assert "bundle.json is damaged" in found[1].problem
    assert found[2].memory == found[2].size == (tmp_path / "model.gguf").stat().st_size


def test_memory_counts_graphs_cache_and_tokenizer(bundle):
    manifest = read_manifest(bundle)
    graphs = manifest.files["decoder_model_merged.onnx_data"].size
    text = manifest.geometry.text
    # Layers 0 and 2 slide, 1 and 3 are full, 4 and 5 share: two heads of 16 and 32 values.
    assert [text.is_full(i) for i in range(text.num_own_layers)] == [False, True, False, True]
    cache = 2 * 8 * 2 * (16 * (text.sliding_window + 256) + 32 * 4096)
    tokenizer = 9 * manifest.files["tokenizer.json"].size
    assert inventory.memory_needed(manifest) == graphs + cache + tokenizer + 80_000_000


def test_the_caches_of_other_programs_are_looked_into(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
    gguf(tmp_path / "hub" / "models--google--x-gguf" / "snapshots" / "c0ffee" / "x.gguf", "gemma4")
    gguf(tmp_path / "llama" / "y.gguf", "gemma4")
    assert [model.name for model in inventory.look(inventory.gguf_folders())] == ["x", "y"]
