from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import is_bundle, read_manifest, verify, write_manifest
from edge_runtime.cli.main import main
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import export_checkpoint
from tests.export.tiny import write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model")
    export_checkpoint(tmp_path / "model", tmp_path / "bundle")
    return tmp_path / "bundle"


def test_sound_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_bundle(bundle)
    assert verify(bundle) == []
    assert main(["verify", str(bundle)]) == 0
    captured = capsys.readouterr()
    assert "ok" in captured.out
    assert captured.err == ""


def test_manifest_round_trip(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    before = (bundle / names.MANIFEST).read_text()
    write_manifest(bundle, manifest)
    assert (bundle / names.MANIFEST).read_text() == before
    assert read_manifest(bundle) == manifest


@pytest.mark.parametrize("name", [names.data_file(names.DECODER), names.EMBED_TABLE, names.DECODER, names.TOKENIZER])
def test_a_flipped_byte_is_found(bundle: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(bundle)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert f"{name} is damaged" in captured.err


def test_truncated_missing_and_foreign_files_are_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle / names.PLE_TABLE
    path.write_bytes(path.read_bytes()[:-1])
    (bundle / names.DECODER).unlink()
    assert main(["verify", str(bundle), "--json"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert not data["ok"]
    assert any(p.startswith(f"{names.PLE_TABLE} has ") for p in data["problems"])
    assert f"{names.DECODER} is missing" in data["problems"]
    assert len(data["problems"]) == 2


def change(bundle: Path, key: str, value: object) -> None:
    path = bundle / names.MANIFEST
    data = json.loads(path.read_text())
    data[key] = value
    path.write_text(json.dumps(data))


def test_manifest_must_fit_its_files(bundle: Path) -> None:
    original = json.loads((bundle / names.MANIFEST).read_text())
    change(bundle, "geometry", original["geometry"] | {"bos": 77})
    assert verify(bundle) == [f"{names.MANIFEST}: its geometry is not that of {names.CONFIG}"]
    change(bundle, "geometry", original["geometry"])
    change(bundle, "files", {k: v for k, v in original["files"].items() if k != names.DECODER})
    assert verify(bundle) == [f"{names.DECODER} is not listed in {names.MANIFEST}"]
    change(bundle, "files", original["files"] | {"../secret": {"size": 1, "sha256": ""}})
    assert verify(bundle) == [f"{names.MANIFEST} lists '../secret', which is no plain file name"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is damaged"),
        ("[]", "format None"),
        ('{"format": 2}', "has format 2, this version of edge-runtime reads format 1"),
        ('{"format": 1}', "is damaged"),
    ],
)
def test_unreadable_manifests(bundle: Path, content: str, expected: str) -> None:
    (bundle / names.MANIFEST).write_text(content)
    with pytest.raises(EdgeRuntimeError, match=expected):
        read_manifest(bundle)
    problems = verify(bundle)
    assert len(problems) == 1
    assert expected in problems[0]


def test_what_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for name, expected in (("nowhere", "does not exist"), (".", "no bundle.json"), ("file", "it is no folder")):
        assert main(["verify", str(tmp_path / name)]) == 2
        captured = capsys.readouterr()
        assert expected in captured.err
        assert captured.err.count("\n") == 1
