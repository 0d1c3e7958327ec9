"""The promise about memory, against what the kernel counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks import synthetic
from benchmarks.synthetic_configs import config
from benchmarks.synthetic_tokenizer import write_tokenizer
from edge_runtime.cli.main import main
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.memory import budget, bundle_bytes, peak_memory, resident
from edge_runtime.export.recipes import RECIPES
from edge_runtime.export.safetensors import Checkpoint
from edge_runtime.gemma.geometry import Geometry
from edge_runtime.machine import parse_size
from tests.export.tiny import CONFIG, decoder_tensors, to_bf16, write_checkpoint, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Iterator

E2B = Geometry.from_config(config("e2b"))


def write_large(folder: Path, vocab: int) -> Path:
    """A checkpoint with an embedding of `vocab` KiB and matrices of 2 MB, some of which are stacked."""
    changes = {"vocab_size": vocab, "hidden_size": 512, "intermediate_size": 2048, "hidden_size_per_layer_input": 0}
    changes |= {"num_hidden_layers": 2, "layer_types": CONFIG["layer_types"][:2], "num_kv_shared_layers": 0}
    settings = {**CONFIG, **changes}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = decoder_tensors(Geometry.from_config({**settings, "vocab_size": 32}))
    small = to_bf16(tensors["model.embed_tokens.weight"])
    tensors["model.embed_tokens.weight"] = np.tile(small, (vocab // 32, 1))
    write_safetensors(folder / "model.safetensors", tensors, "BF16")
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large(tmp_path_factory.mktemp("large") / "model", 100_000)


def export(checkpoint: Path, bundle: Path, *options: str, before: str = "") -> dict[str, Any]:
    words = [
        sys.executable,
        "-m",
        "edge_runtime",
        "export",
        str(checkpoint),
        str(bundle),
        "--force",
        "--json",
        *options,
    ]
    if before:
        words = ["sh", "-c", f'{before} exec "$@"', "sh", *words]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize(
    ("recipe", "threads", "limit"),
    [("int4", "2", None), ("int4", "8", "150M"), ("int4", "1", "100M"), ("fp32", "3", None)],
)
def test_promise_is_kept(large: Path, tmp_path: Path, recipe: str, threads: str, limit: str | None) -> None:
    options = ["--max-memory", limit] if limit else []
    report = export(large, tmp_path / "bundle", "--recipe", recipe, "--threads", threads, *options)
    peak, planned = report["peak_memory_bytes"], report["planned_memory_bytes"]
    assert peak <= planned
    with Checkpoint(large) as checkpoint:
        foreseen = bundle_bytes(RECIPES[recipe], checkpoint)
    assert report["total_bytes"] <= foreseen < 1.1 * report["total_bytes"]
    # Nor is it so loose that work is refused that would fit.
    assert planned < 2.5 * peak, f"{planned / 1e6:.0f} MB planned, {peak / 1e6:.0f} MB taken"
    if limit:
        assert planned <= parse_size(limit)
    else:
        assert report["threads"] == int(threads)


def test_promise_holds_for_many_experts(tmp_path: Path) -> None:
    settings = config("26b-a4b", layers=12)
    settings["text_config"] |= {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32}
    settings["text_config"] |= {"vocab_size": 512, "head_dim": 32, "global_head_dim": 64}
    settings["vision_config"] = None
    synthetic.write(tmp_path / "model", settings)
    write_tokenizer(tmp_path / "model", "small")
    report = export(tmp_path / "model", tmp_path / "bundle")
    assert report["peak_memory_bytes"] <= report["planned_memory_bytes"] < 2.5 * report["peak_memory_bytes"]


def test_what_cannot_fit_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), str(tmp_path / "bundle"), "--max-memory"]
    assert main([*words, "20M"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("edge-runtime: this export needs ")
    assert line.endswith(" MB of memory, 21 MB are allowed\n")
    needed = int(line.split()[4])
    assert not (tmp_path / "bundle").exists()
    assert main([*words, f"{needed * 1_000_000 + 20_000_000}"]) == 0


@pytest.mark.parametrize("text", ["", "4X", "G", "-1G", "1.G", "many"])
def test_sizes_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path), str(tmp_path / "b"), f"--max-memory={text}"])
    assert stopped.value.code == 2
    assert f"{text!r} is no size, such as 4G or 1500M" in capsys.readouterr().err


def test_sizes() -> None:
    sizes = {"4G": 4 << 30, "1500M": 1500 << 20, "2.5 GiB": 5 << 29, "100": 100, "1kB": 1024, "1t": 1 << 40}
    assert {text: parse_size(text) for text in sizes} == sizes


def test_less_memory_means_smaller_pieces_then_fewer_threads() -> None:
    seen = []
    for limit in (2000, 240, 200, 175, 160):
        found = budget(E2B, threads=4, limit=resident() + (limit << 20))
        assert found.peak <= resident() + (limit << 20)
        seen.append((found.pace.workers, found.pace.chunk_bytes))
    assert seen[0] == (4, 4 << 20)
    assert seen == sorted(seen, reverse=True)
    assert seen[1][0] == 4
    assert seen[1][1] < 4 << 20
    assert seen[-1][0] < 4
    assert budget(E2B, threads=1, limit=resident() + (400 << 20)).pace.workers == 1
    with pytest.raises(EdgeRuntimeError, match="this export needs"):
        budget(E2B, limit=resident() + (100 << 20))


def test_peak_is_at_least_what_there_is() -> None:
    now = resident()
    assert 10e6 < now <= peak_memory()


MEMORY_GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
LIMIT_FILES = ("memory.limit_in_bytes", "memory.max")


def group(size: int) -> Path | None:
    """A control group that allows its members `size` bytes; None where we may not make one."""
    for base, name in zip(MEMORY_GROUPS, LIMIT_FILES, strict=True):
        folder = base / f"edge-runtime-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / name).write_text(str(size))
        except OSError:
            if folder.is_dir():
                folder.rmdir()
            continue
        return folder
    return None


@pytest.fixture
def limited() -> Iterator[tuple[str, int]]:
    """What a shell must do to be in a group that allows it so many bytes."""
    size = 200 << 20
    folder = group(size)
    if folder is None:
        pytest.skip("no control group can be made here")
    yield f"echo $$ > {folder / 'cgroup.procs'} &&", size
    folder.rmdir()


@pytest.mark.slow
def test_promise_is_kept_under_the_kernels_limit(tmp_path: Path, limited: tuple[str, int]) -> None:
    """The group's limit also counts the page cache, of which there is more than that: the kernel takes it back."""
    before, size = limited
    checkpoint = write_large(tmp_path / "model", 320_000)
    report = export(checkpoint, tmp_path / "bundle", "--max-memory", str(size), "--threads", "8", before=before)
    assert report["peak_memory_bytes"] <= report["planned_memory_bytes"] <= size
