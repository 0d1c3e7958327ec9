from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest, verify
from edge_runtime.cli.main import main
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import export_checkpoint, pipeline
from tests.export.tiny import CONFIG, write_checkpoint, write_safetensors

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("recipe", ["int4", "fp32"])
def test_bundle_is_whole_and_described(tmp_path: Path, recipe: str) -> None:
    write_checkpoint(tmp_path / "model", dtype="BF16")
    told: list[tuple[str, int, int]] = []
    report = export_checkpoint(
        tmp_path / "model", tmp_path / "out" / "bundle", recipe=recipe, progress=lambda *a: told.append(a)
    )
    bundle = tmp_path / "out" / "bundle"
    assert verify(bundle) == []
    manifest = read_manifest(bundle)
    assert (manifest.name, manifest.recipe) == ("model", recipe)
    if recipe == "fp32":
        assert (manifest.embedding, manifest.tables[names.EMBED_TABLE].multiplier) == (None, 8.0)
    else:
        assert (names.EMBED_TABLE in manifest.tables, manifest.embedding.multiplier) == (False, 8.0)
    # sqrt(32) as bfloat16 has it, times the mixing's 2^-0.5.
    assert manifest.tables[names.PLE_TABLE].multiplier == pytest.approx(5.65625 * 2**-0.5)
    assert report.sizes == {path.name: path.stat().st_size for path in bundle.iterdir() if path.name != names.MANIFEST}
    assert [label for label, _, _ in told][-1] == "checksums"
    assert all(0 <= done <= total for _, done, total in told)
    assert entries(tmp_path / "out") == ["bundle"]
    summary = report.to_json()["relative_error"]
    if recipe == "int4":
        assert 0.04 < summary["int4"]["mean"] <= summary["int4"]["worst"] < 0.15
    else:
        assert summary == {}


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def broken(folder: Path, **changes: Any) -> Path:
    write_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def test_errors_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good"
    tensors = write_checkpoint(good)
    empty = tmp_path / "empty"
    empty.mkdir()
    lacking = tmp_path / "lacking"
    write_checkpoint(lacking)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    write_safetensors(lacking / "model.safetensors", tensors)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious.txt").write_text("mine")
    no_weights = tmp_path / "no_weights"
    no_weights.mkdir()
    (no_weights / "config.json").write_text(json.dumps(CONFIG))
    no_json = tmp_path / "no_json"
    no_json.mkdir()
    (no_json / "config.json").write_text("{")
    cases = [
        ([str(tmp_path / "nowhere"), "out"], "nowhere does not exist"),
        ([str(good / "config.json"), "out"], "config.json is no folder"),
        ([str(empty), "out"], "it has no config.json"),
        ([str(no_json), "out"], "config.json cannot be read"),
        ([str(no_weights), "out"], "holds no model.safetensors"),
        ([str(broken(tmp_path / "b1", model_type="llama")), "out"], "model_type is 'llama'"),
        ([str(broken(tmp_path / "b2", enable_moe_block=True)), "out"], "num_experts is None"),
        ([str(broken(tmp_path / "b3", hidden_size=128)), "out"], "its config.json implies"),
        ([str(broken(tmp_path / "b4", head_dim=20)), "out"], "head size of 20"),
        ([str(lacking), "out"], "no tensor model.layers.2.mlp.up_proj.weight"),
        ([str(good), "out", "--recipe", "int3"], "recipe 'int3' is not known; there are int4, int8, mobile, fp32"),
        ([str(good), "out", "--drafter", str(good)], "not 'gemma4_assistant'"),
        ([str(good), str(taken)], "exists and is no bundle"),
        ([str(good), str(taken), "--force"], "exists and is no bundle"),
    ]
    for arguments, expected in cases:
        arguments[1] = str(tmp_path / arguments[1])
        assert main(["export", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert expected in captured.err
        assert not (tmp_path / "out").exists()
    assert [p.name for p in taken.iterdir()] == ["precious.txt"]
    assert not list(tmp_path.glob(".*"))


def test_existing_bundle_is_replaced_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), str(tmp_path / "bundle")]
    assert main([*words, "--recipe", "fp32"]) == 0
    assert "fp32" in capsys.readouterr().out
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["recipe"] == "int4"
    assert data["total_bytes"] == sum(data["sizes"].values())
    assert data["peak_memory_bytes"] > 1e6
    assert read_manifest(tmp_path / "bundle").recipe == "int4"
    assert verify(tmp_path / "bundle") == []
    assert entries(tmp_path) == ["bundle", "model"]


def test_failed_export_leaves_nothing_and_keeps_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "model")
    export_checkpoint(tmp_path / "model", tmp_path / "bundle")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "build_decoder", fail)
    with pytest.raises(EdgeRuntimeError, match="No space left on device"):
        export_checkpoint(tmp_path / "model", tmp_path / "bundle", force=True)
    assert verify(tmp_path / "bundle") == []
    assert entries(tmp_path) == ["bundle", "model"]


KILLED = """
import sys, time
from pathlib import Path
from edge_runtime.export import export_checkpoint
def stop(label, done, total):
    if label == "decoder" and done > total // 2:
        print("half", flush=True)
        time.sleep(60)
export_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), progress=stop)
"""


def test_killed_export_leaves_no_bundle_and_the_next_one_sweeps(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    bundle = tmp_path / "bundle"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "model"), str(bundle)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "half\n"
    partial = list(tmp_path.glob(".bundle.*.partial"))
    assert len(partial) == 1
    # While the other export lives, its folder is not swept away.
    export_checkpoint(tmp_path / "model", tmp_path / "bundle")
    assert partial[0].is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", force=True)
    assert verify(bundle) == []
    assert entries(tmp_path) == ["bundle", "model"]
