from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edge_runtime.cli.main import main
from edge_runtime.export import export_checkpoint
from edge_runtime.machine import Memory
from tests.export.hub_server import serve
from tests.export.tiny import write_checkpoint

NANO = Path(__file__).parents[2] / "models" / "nano" / "checkpoint"


@pytest.fixture(autouse=True)
def box(tmp_path, monkeypatch):
    """A box of 4 GB with empty caches; the working folder is empty too."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("EDGE_RUNTIME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
    monkeypatch.setattr("edge_runtime.machine.memory", lambda: Memory(3_900_000_000, 1_000_000_000))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def made(folder: Path) -> None:
    """A bundle at `folder`, of a checkpoint that is gone again."""
    write_checkpoint(folder.parent / ".checkpoint")
    export_checkpoint(folder.parent / ".checkpoint", folder, source={"checkpoint": "google/gemma-4-E2B-it"})
    shutil.rmtree(folder.parent / ".checkpoint")


def test_what_is_here_and_what_fits(box, capsys):
    made(box / "srv" / "kitchen")
    made(box / "cache" / "nano-int4-0123456789ab")
    assert main(["models", "--dir", str(box / "srv")]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line for line in shown.splitlines() if line}
    assert "On this box (1.0 GB of 3.9 GB memory free):" in shown
    assert rows["kitchen"].split()[1] == "int4"
    assert str(box / "srv" / "kitchen") in rows["kitchen"]
    assert "built in" in rows["nano"]
    assert "nano-int4" not in shown
    assert " yes " in rows["gemma-4-e2b"]
    assert rows["gemma-4-e2b"].endswith("Gemma 4 E2B (exported)")
    assert " no " in rows["gemma-4-e4b"]
    assert "assistant" not in shown


def test_json_is_one_object(box, capsys):
    made(box / "here" / "mine")
    made(box / "here" / "old")
    (box / "here" / "old" / "bundle.json").write_text('{"format": 0}')
    assert main(["models", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["memory"] == {"total_bytes": 3_900_000_000, "available_bytes": 1_000_000_000}
    models = {model["name"]: model for model in data["models"]}
    assert models["mine"]["path"] == str(box / "here" / "mine")
    assert models["mine"]["source"] == "google/gemma-4-E2B-it"
    assert (models["mine"]["fits"], models["mine"]["problem"]) == (True, None)
    assert models["old"]["fits"] is False
    assert "format 0" in models["old"]["problem"]
    fits = {recipe["name"]: recipe["fits"] for recipe in data["recipes"]}
    assert (fits["gemma-4-e2b"], fits["gemma-4-e4b"], fits["gemma-4-26b-a4b-gguf"]) == (True, False, False)


def test_the_daemons_model_is_listed(box, capsys, monkeypatch):
    made(box / "srv" / "kitchen")
    monkeypatch.setenv("EDGE_RUNTIME_MODEL__PATH", str(box / "srv" / "kitchen"))
    assert main(["models"]) == 0
    assert str(box / "srv" / "kitchen") in capsys.readouterr().out


def test_broken_settings_do_not_hide_the_rest(capsys, monkeypatch):
    monkeypatch.setenv("EDGE_RUNTIME_MODEL__PATH", "")
    assert main(["models"]) == 0
    shown = capsys.readouterr()
    assert "EDGE_RUNTIME_MODEL__PATH" in shown.err
    assert "gemma-4-e2b" in shown.out


def test_a_folder_that_is_none_is_said(box, capsys):
    assert main(["models", "--dir", str(box / "missing")]) == 2
    assert capsys.readouterr().err == f"edge-runtime: {box / 'missing'} is no folder\n"


def test_fetching_by_name(box, capsys, monkeypatch):
    with serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.add_folder("google/gemma-4-E2B-it", NANO)
        hub.add_folder("google/gemma-4-E2B-it-assistant", NANO / "drafter")
        gguf = {"gemma-4-E2B_q4_0-it.gguf": b"GGUF", "gemma-4-E2B-it-mmproj.gguf": b"GGUF"}
        hub.add("google/gemma-4-E2B-it-qat-q4_0-gguf", gguf)
        assert main(["models", "--fetch", "gemma-4-e2b"]) == 0
        shown = capsys.readouterr()
        assert [(Path(path) / "config.json").is_file() for path in shown.out.split()] == [True, True]
        assert shown.err == "next: edge-runtime export gemma-4-e2b BUNDLE\n"
        assert main(["models", "--fetch", "gemma-4-e2b-gguf", "--json"]) == 0
        fetched = json.loads(capsys.readouterr().out)["fetched"]
        assert {Path(path).name: Path(path).read_bytes() for path in fetched} == gguf
        assert main(["models", "--fetch", "gemma-4-e9b"]) == 2
        assert "did you mean gemma-4-e" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["models", "--fetch", "gemma-4-e2b", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["fetched"]) == 2
