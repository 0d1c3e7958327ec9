"""Weights packed on the device: the same numbers, found again, made anew when anything is not as it was."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.checksums import Checksums
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx import packed as packed_module
from edge_runtime.engine.onnx import slices
from edge_runtime.engine.onnx.decoder import Decoder
from edge_runtime.engine.onnx.encoders import Encoders
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.onnx.kv_graph import read_graph
from edge_runtime.engine.onnx.packed import PackedGraphs
from edge_runtime.engine.protocol import Request
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import export_checkpoint
from edge_runtime.gemma.chat import Media
from tests.engine import runs

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.fixture(scope="module", params=["int4", "mobile"])
def bundle(request: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("packed") / request.param
    export_checkpoint(checkpoint, folder, recipe=request.param)
    return folder


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "WORTH", 0)


def graphs(bundle: Path, cache: Path) -> PackedGraphs:
    found = PackedGraphs.of(bundle, read_manifest(bundle), cache)
    assert found is not None
    return found


def logits(bundle: Path, cache: Path | None, kv_type: Any = "fp32") -> NDArray[np.float32]:
    manifest = read_manifest(bundle)
    decoder = Decoder(
        bundle,
        manifest,
        context=256,
        threads=1,
        checksums=Checksums.open(bundle, manifest.files),
        kv_type=kv_type,
        packed=None if cache is None else graphs(bundle, cache),
    )
    ids = np.arange(300, 400)
    found = [
        decoder.step(part, decoder.embed(part), keep=len(part)).copy() for part in (ids[:60], ids[60:61], ids[61:])
    ]
    decoder.close()
    return np.concatenate(found)


def data_of(cache: Path) -> Path:
    (path,) = cache.glob(f"packed/*/{names.DECODER}/{names.data_file(names.DECODER)}")
    return path


@pytest.mark.parametrize("kv_type", ["fp32", "int8"])
def test_the_numbers_are_the_same(bundle: Path, tmp_path: Path, kv_type: Any):
    expected = logits(bundle, None, kv_type)
    for _ in range(2):
        assert np.array_equal(logits(bundle, tmp_path, kv_type), expected)
    assert not list(data_of(tmp_path).parents[1].glob(".*"))  # nothing is left of the making


@pytest.mark.parametrize("kv_type", ["fp32", "int8"])
def test_large_matrices_are_cut(bundle: Path, tmp_path: Path, kv_type: Any, monkeypatch: pytest.MonkeyPatch):
    expected = logits(bundle, None, kv_type)
    # The head has 2048 x 256 weights; of a limit that is no divisor more slices are made.
    monkeypatch.setattr(slices, "SLICE", (2048 * 256) // 3)
    for _ in range(2):
        assert np.array_equal(logits(bundle, tmp_path, kv_type), expected)
    tensors = read_graph(data_of(tmp_path).parent / names.DECODER).graph.initializer
    heads = [tensor.dims[0] for tensor in tensors if "embed_tokens.weight.q" in tensor.name]
    assert heads == [512] * 4


def test_pages_that_only_loading_looked_at_are_let_go(bundle: Path, tmp_path: Path):
    session = graphs(bundle, tmp_path).open(names.DECODER, 1, None)
    mapped = resident = 0
    ours = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match("[0-9a-f]+-", line):
            ours = line.endswith(str(data_of(tmp_path)))
        elif ours and line.startswith(("Size:", "Rss:")):
            mapped += int(line.split()[1]) * line.startswith("Size:")
            resident += int(line.split()[1]) * line.startswith("Rss:")
    assert session.get_inputs()
    assert mapped > 2000
    assert resident == 0


def test_towers_too(bundle: Path, tmp_path: Path):
    manifest = read_manifest(bundle)
    sound = Media("audio", np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32))
    found = []
    for packed in (None, graphs(bundle, tmp_path), graphs(bundle, tmp_path)):
        encoders = Encoders(bundle, manifest, 1, packed=packed)
        found.append(encoders.encode(encoders.prepare(sound)))
        encoders.close()
    assert np.array_equal(found[1], found[2])
    # Packed towers round a token's values with one scale: what is not rounded here is as far from both.
    assert np.linalg.norm(found[1] - found[0]) < 0.1 * np.linalg.norm(found[0])


def test_packed_weights_are_mapped(bundle: Path, tmp_path: Path):
    engine = OnnxEngine(bundle, threads=1, context=256, cache=tmp_path)
    with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123 - as short as it gets
        mapped = [line for line in maps if str(data_of(tmp_path)) in line]
    assert mapped
    assert engine.memory.mapped > 0
    prepared = engine.prepare(Request([{"role": "user", "content": "Hello"}], max_tokens=3))
    assert runs.greedy(engine, prepared)
    engine.close()


@pytest.mark.parametrize("how", ["flipped", "short", "no graph", "no description"])
def test_what_is_damaged_is_made_anew(bundle: Path, tmp_path: Path, how: str):
    expected = logits(bundle, tmp_path)
    data = data_of(tmp_path)
    if how == "flipped":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 4
        data.write_bytes(content)
    elif how == "short":
        with data.open("r+b") as file:
            file.truncate(data.stat().st_size // 2)
    elif how == "no graph":
        (data.parent / names.DECODER).unlink()
    else:
        (data.parent / "packed.json").unlink()
    assert np.array_equal(logits(bundle, tmp_path), expected)
    assert packed_module._sound(data.parent)


def test_another_version_makes_its_own_and_the_old_goes(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    logits(bundle, tmp_path)
    old = data_of(tmp_path)
    monkeypatch.setattr("onnxruntime.__version__", "99")
    logits(bundle, tmp_path)
    assert not old.exists()
    assert data_of(tmp_path).parents[1] != old.parents[1]


def test_another_processor_makes_its_own(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = graphs(bundle, tmp_path)._place
    monkeypatch.setattr(packed_module, "_processor", lambda: ["another"])
    assert graphs(bundle, tmp_path)._place != first


def test_a_full_disk_is_seen_before(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300 << 20))
    monkeypatch.setattr(packed_module, "_SPARE", 1 << 40)
    assert PackedGraphs.of(bundle, read_manifest(bundle), tmp_path) is None
    assert "has 0 bytes to spare" in caplog.text


def test_a_cache_that_cannot_be_written(bundle: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert PackedGraphs.of(bundle, read_manifest(bundle), tmp_path / "file") is None


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    data = copy / names.data_file(names.DECODER)
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    with pytest.raises(EdgeRuntimeError, match="is damaged in bytes"):
        logits(copy, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("packed/*/*"))


def test_small_models_are_not_worth_it(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed_module, "WORTH", 64 << 20)
    assert PackedGraphs.of(bundle, read_manifest(bundle), tmp_path) is None
    assert PackedGraphs.of(bundle, read_manifest(bundle), None) is None
