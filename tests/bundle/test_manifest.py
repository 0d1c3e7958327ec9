from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import digest, is_bundle, read_manifest, verify, write_manifest
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


def test_a_flipped_bit_anywhere_is_found_and_placed(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    blocks = {name: entry.block for name, entry in read_manifest(bundle).files.items()}
    for path in sorted(bundle.iterdir()):
        sound = path.read_bytes()
        for at in (0, len(sound) - 1, *rng.integers(0, len(sound), 6).tolist()):
            damaged = bytearray(sound)
            damaged[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            assert main(["verify", str(bundle)]) == 2
            captured = capsys.readouterr()
            assert captured.err.count("\n") == 1
            assert path.name in captured.err
            if block := blocks.get(path.name):
                first = at // block * block
                last = min(first + block, len(sound)) - 1
                assert f"{path.name} is damaged in bytes {first} to {last}\n" in captured.err
        path.write_bytes(sound)
    assert verify(bundle) == []


@pytest.mark.parametrize("part", ["multiplier", "size", "kv_sources"])
def test_a_changed_number_in_the_manifest_is_found(bundle: Path, part: str) -> None:
    path = bundle / names.MANIFEST
    text = path.read_text()
    at = next(i for i in range(text.index(f'"{part}"') + len(part) + 2, len(text)) if text[i].isdigit())
    path.write_text(text[:at] + str((int(text[at]) + 1) % 9 + 1) + text[at + 1 :])
    with pytest.raises(EdgeRuntimeError, match=r"bundle\.json is damaged: its contents are not those"):
        read_manifest(bundle)


def test_progress_counts_every_byte(bundle: Path) -> None:
    told: list[tuple[int, int]] = []
    assert verify(bundle, lambda done, total: told.append((done, total))) == []
    size = sum(path.stat().st_size for path in bundle.iterdir() if path.name != names.MANIFEST)
    assert told[-1] == (size, size)


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
    data = json.loads(path.read_text()) | {key: value}
    del data["sha256"]
    path.write_text(json.dumps(data | {"sha256": digest(data)}))


def test_manifest_must_fit_its_files(bundle: Path) -> None:
    original = json.loads((bundle / names.MANIFEST).read_text())
    change(bundle, "geometry", original["geometry"] | {"bos": 77})
    assert verify(bundle) == [f"{names.MANIFEST}: its geometry is not that of {names.CONFIG}"]
    change(bundle, "geometry", original["geometry"])
    change(bundle, "files", {k: v for k, v in original["files"].items() if k != names.DECODER})
    assert verify(bundle) == [f"{names.DECODER} is not listed in {names.MANIFEST}"]
    change(bundle, "files", original["files"] | {"../secret": {"size": 1, "sha256": "", "block": 4096}})
    assert verify(bundle) == [f"{names.MANIFEST} lists '../secret', which is no plain file name"]
    change(bundle, "files", original["files"] | {names.CONFIG: original["files"][names.CONFIG] | {"block": 1}})
    assert verify(bundle) == [f"{bundle / names.CHECKSUMS} does not fit the files in {names.MANIFEST}"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is damaged"),
        ("[]", "format None"),
        ('{"format": 1}', "has format 1, this version of edge-runtime reads format 2: export again"),
        ('{"format": 2}', "is damaged"),
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
