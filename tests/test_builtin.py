from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime import builtin
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import pipeline


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A checkpoint, an empty cache, and an export that only leaves a manifest; the list of what was exported."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    done: list[Path] = []

    def export(source: Path, bundle: Path, *, recipe: str, drafter: Path | None) -> None:
        assert (source, recipe, drafter) == (checkpoint, "int4", None)
        bundle.mkdir(parents=True)
        (bundle / "bundle.json").write_text("{}")
        done.append(bundle)

    monkeypatch.setattr(builtin, "checkpoint_path", lambda: checkpoint)
    monkeypatch.setattr(pipeline, "export_checkpoint", export)
    monkeypatch.setenv("EDGE_RUNTIME_CACHE", str(tmp_path / "cache"))
    return done


def test_exported_once(exports: list[Path], tmp_path: Path):
    first = builtin.bundle_path()
    assert builtin.bundle_path() == first
    assert exports == [first]
    assert first.parent == tmp_path / "cache"
    assert first.name.startswith("nano-int4-")


def test_other_weights_make_another_bundle(exports: list[Path], tmp_path: Path):
    first = builtin.bundle_path()
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"WEIGHTS")
    assert builtin.bundle_path() != first
    assert len(exports) == 2


def test_another_process_may_win(exports: list[Path], monkeypatch: pytest.MonkeyPatch):
    def lose(_source: Path, bundle: Path, *, recipe: str, drafter: Path | None) -> None:
        bundle.mkdir(parents=True)
        (bundle / "bundle.json").write_text("{}")
        raise EdgeRuntimeError(f"{bundle} exists ({recipe}, {drafter})")

    monkeypatch.setattr(pipeline, "export_checkpoint", lose)
    assert builtin.bundle_path().is_dir()


def test_a_cache_that_cannot_be_written(exports: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("EDGE_RUNTIME_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(EdgeRuntimeError, match="Not a directory"):
        builtin.bundle_path()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("EDGE_RUNTIME_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert builtin.cache_path() == Path("/somewhere/edge-runtime")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert builtin.cache_path() == Path("/home/x/.cache/edge-runtime")


def test_prompts_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert (builtin.heldout_path() / "text" / "cases.jsonl").is_file()
    monkeypatch.setattr(builtin, "_PACKAGE", tmp_path / "package")
    with pytest.raises(EdgeRuntimeError, match="give a folder with --prompts"):
        builtin.heldout_path()
    (tmp_path / "package" / "models" / "nano-heldout").mkdir(parents=True)
    assert builtin.heldout_path() == tmp_path / "package" / "models" / "nano-heldout"
