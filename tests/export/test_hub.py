"""Fetching from a hub: the server is real and on loopback, the client is huggingface_hub."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge_runtime.bundle.manifest import read_manifest, verify
from edge_runtime.cli.main import main
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import hub
from edge_runtime.export.source import checkpoint_files, fetch_model, resolve_source
from tests.export.hub_server import Hub, serve
from tests.export.tiny import write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

NANO = Path(__file__).parents[2] / "models" / "nano" / "checkpoint"
WEIGHTS = "model.safetensors"
UNWANTED = {"model.gguf": b"x" * 999, "onnx/decoder.onnx": b"x" * 999, "old.pth": b"x" * 999, "README.md": b"# hello"}


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; nothing of the user's own settings."""
    for name in ("HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def tiny(folder: Path, seed: int = 0) -> dict[str, bytes]:
    """The files of a small random checkpoint."""
    write_checkpoint(folder, seed=seed)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1, shown.err
    return shown.err.strip()


def test_a_recipe_becomes_a_bundle_that_answers(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = server.add_folder("google/gemma-4-E2B-it", NANO)
    drafter = server.add_folder("google/gemma-4-E2B-it-assistant", NANO / "drafter")
    assert main(["export", "Gemma-4-E2B", str(tmp_path / "bundle")]) == 0
    assert capsys.readouterr().err == ""
    assert verify(tmp_path / "bundle") == []
    manifest = read_manifest(tmp_path / "bundle")
    assert (manifest.name, manifest.recipe) == ("gemma-4-E2B-it", "int4")
    assert manifest.source == {
        "checkpoint": "google/gemma-4-E2B-it",
        "revision": commit,
        "model": "gemma-4-e2b",
        "licence": "Apache-2.0",
        "drafter": "google/gemma-4-E2B-it-assistant",
        "drafter_revision": drafter,
    }
    assert manifest.geometry.assistant
    words = ["ask", "--model", str(tmp_path / "bundle"), "--json", "--temperature", "0", "When does the cafe open?"]
    assert main(words) == 0
    assert len(json.loads(capsys.readouterr().out)["text"].split()) > 2


def test_only_what_an_export_reads_is_fetched(server: Hub, tmp_path: Path) -> None:
    files = tiny(tmp_path / "model")
    server.add("me/model", files | UNWANTED)
    told: list[tuple[str, int, int]] = []
    found = resolve_source("me/model", progress=lambda *step: told.append(step))
    assert {path.name for path in found.checkpoint.iterdir()} == set(files)
    assert (found.checkpoint / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert not any(name in request.path for name in UNWANTED for request in server.requests)
    total = sum(len(data) for data in files.values())
    fetched = [step for step in told if step[0].startswith("fetching")]
    assert {step[2] for step in fetched} == {total}
    assert [step[1] for step in fetched] == sorted(step[1] for step in fetched)
    assert fetched[-1] == (f"fetching {WEIGHTS}", total, total)
    assert told[-1] == (f"checking {WEIGHTS}", len(files[WEIGHTS]), len(files[WEIGHTS]))


def test_fetched_once(server: Hub, tmp_path: Path) -> None:
    server.add("me/model", tiny(tmp_path / "model"))
    first = resolve_source("me/model")
    server.requests.clear()
    assert resolve_source("me/model") == first
    assert [request.path for request in server.requests] == ["/api/models/me/model/revision/main"]


def test_other_programs_find_it_in_the_cache(server: Hub, tmp_path: Path) -> None:
    server.add("me/model", tiny(tmp_path / "model"))
    found = resolve_source("me/model")
    from huggingface_hub import hf_hub_download, snapshot_download

    cache = tmp_path / "hub"
    assert snapshot_download("me/model", cache_dir=cache, local_files_only=True) == str(found.checkpoint)
    file = hf_hub_download("me/model", WEIGHTS, cache_dir=cache, local_files_only=True)
    assert file == str(found.checkpoint / WEIGHTS)


def test_what_other_programs_fetched_is_not_fetched_again(server: Hub, tmp_path: Path) -> None:
    server.add("me/model", tiny(tmp_path / "model"))
    from huggingface_hub import hf_hub_download

    hf_hub_download("me/model", WEIGHTS, cache_dir=tmp_path / "hub", endpoint=server.endpoint)
    assert len(server.transfers(WEIGHTS)) == 1
    resolve_source("me/model")
    assert len(server.transfers(WEIGHTS)) == 1


def test_a_cut_line_is_taken_up_where_it_broke(server: Hub, tmp_path: Path) -> None:
    files = tiny(tmp_path / "model")
    server.add("me/model", files)
    server.cuts[WEIGHTS] = [100_000]
    found = resolve_source("me/model")
    assert (found.checkpoint / WEIGHTS).read_bytes() == files[WEIGHTS]
    first, second = server.transfers(WEIGHTS)
    assert (first.range, second.range) == (None, "bytes=100000-")
    assert first.sent + second.sent == len(files[WEIGHTS])


def test_a_server_that_knows_no_ranges_sends_it_anew(server: Hub, tmp_path: Path) -> None:
    files = tiny(tmp_path / "model")
    server.add("me/model", files)
    server.cuts[WEIGHTS], server.ranges = [100_000], False
    assert (resolve_source("me/model").checkpoint / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_a_line_that_stays_away_is_given_up_and_what_came_is_kept(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny(tmp_path / "model")
    server.add("me/model", files)
    monkeypatch.setattr(hub, "_PAUSE", 0.0)
    server.cuts[WEIGHTS] = [100_000, 50_000, *[0] * 5]
    with pytest.raises(hub.Unreachable, match="cannot be reached"):
        resolve_source("me/model")
    assert len(server.cuts[WEIGHTS]) == 0
    server.requests.clear()
    assert (resolve_source("me/model").checkpoint / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert [transfer.range for transfer in server.transfers(WEIGHTS)] == ["bytes=150000-"]


FETCH = "from edge_runtime.export.source import resolve_source; resolve_source('me/model')"


def test_a_killed_fetch_is_taken_up_where_it_broke(server: Hub, tmp_path: Path) -> None:
    files = tiny(tmp_path / "model")
    server.add("me/model", files)
    server.cuts[WEIGHTS] = [200_000]
    server.stall.add(WEIGHTS)
    process = subprocess.Popen([sys.executable, "-c", FETCH])
    assert server.stalled.wait(30)
    partial = tmp_path / "hub" / "models--me--model" / "blobs"
    while not any(path.stat().st_size > 100_000 for path in partial.glob("*.incomplete")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    arrived = next(path.stat().st_size for path in partial.glob("*.incomplete") if path.stat().st_size)
    server.requests.clear()
    assert hub.cached("me/model", "main", checkpoint_files) is None
    found = resolve_source("me/model")
    assert (found.checkpoint / WEIGHTS).read_bytes() == files[WEIGHTS]
    (rest,) = server.transfers(WEIGHTS)
    assert (rest.range, rest.sent) == (f"bytes={arrived}-", len(files[WEIGHTS]) - arrived)
    assert not list(partial.glob("*.incomplete"))


def test_a_damaged_file_is_refused_and_removed(server: Hub, tmp_path: Path) -> None:
    files = tiny(tmp_path / "model")
    server.add("me/model", files)
    server.damaged.add(WEIGHTS)
    with pytest.raises(EdgeRuntimeError, match="arrived damaged"):
        resolve_source("me/model")
    assert hub.cached("me/model", "main", checkpoint_files) is None
    server.damaged.clear()
    assert (resolve_source("me/model").checkpoint / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_a_revision_is_pinned(server: Hub, tmp_path: Path) -> None:
    old, new = tiny(tmp_path / "old"), tiny(tmp_path / "new", seed=1)
    first = server.add("me/model", old)
    second = server.add("me/model", new)
    server.add("me/model", old, branch="v1")
    for text, commit, files in (
        (f"me/model@{first}", first, old),
        ("me/model", second, new),
        ("me/model@v1", first, old),
    ):
        found = resolve_source(text)
        assert found.source == {"checkpoint": "me/model", "revision": commit}
        assert (found.checkpoint / WEIGHTS).read_bytes() == files[WEIGHTS]
    server.requests.clear()
    resolve_source(f"me/model@{first}")
    assert server.requests == [], "a commit that is in the cache needs no hub"


def test_offline_takes_the_cache_or_says_so(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("me/model", tiny(tmp_path / "model"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["export", "me/model", str(tmp_path / "bundle")]) == 2
    assert one_line(capsys) == (
        f"edge-runtime: me/model is not in {tmp_path / 'hub'} and HF_HUB_OFFLINE forbids to fetch it"
    )
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = resolve_source("me/model")
    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_source("me/model") == found
    assert main(["export", "me/model", str(tmp_path / "bundle")]) == 0
    assert server.requests == []


def test_a_hub_that_is_away_leaves_the_cache(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = server.add("me/model", tiny(tmp_path / "model"))
    found = resolve_source("me/model")
    notes: list[str] = []
    server.broken = 503
    assert resolve_source("me/model", note=notes.append) == found
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve_source("me/model", note=notes.append) == found
    assert [commit[:12] in note for note in notes] == [True, True]
    assert "answers 503" in notes[0]
    assert "cannot be reached" in notes[1]


def test_errors_are_one_clear_line(server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tiny(tmp_path / "model")
    server.add("me/model", files)
    server.add("me/gguf", {"model-Q4_0.gguf": b"GGUF", "README.md": b"#"})
    server.add("me/bare", {"config.json": b"{}"})
    shards = dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors.index.json"), b"{}")
    server.add("me/shards", shards | {"model-00001-of-00002.safetensors": b""})
    server.add("google/gemma-4-E2B-it", files)
    server.gated = {"google/gemma-4-E2B-it"}
    server.add_folder("google/gemma-4-E2B-it-assistant", NANO / "drafter")
    cases = [
        (["me/nothing"], "me/nothing is neither a folder here nor a model on the hub; if it is private, log in"),
        (["me/model@v9"], "me/model has no revision 'v9'"),
        (["me/gguf"], "me/gguf: it holds GGUF files, which need no export"),
        (["me/bare"], "me/bare: it is no checkpoint of safetensors: it lacks tokenizer.json, model.safetensors"),
        (["me/shards"], "it lacks all shards of model.safetensors"),
        (["gemma-4-e2b"], f"is gated: accept its licence at {server.endpoint}/google/gemma-4-E2B-it, then log in"),
        (["gemma-4-e2"], "no hub id (owner/name) and no recipe: did you mean gemma-4-e2b?"),
        (["gemma-4-e2b-gguf"], "needs no export: `edge-runtime models --fetch gemma-4-e2b-gguf`"),
        (["gemma-4-e2b-assistant"], "is a drafter: it is exported with its model, by --drafter gemma-4-e2b-assistant"),
        (["me/model", "--drafter", "gemma-4-e4b"], "gemma-4-e4b is no drafter"),
        (["me/model", "--recipe", "int3"], "recipe 'int3' is not known"),
    ]
    for words, expected in cases:
        assert main(["export", words[0], str(tmp_path / "out"), *words[1:]]) == 2
        assert expected in one_line(capsys)
        assert not (tmp_path / "out").exists()
    server.broken = 500
    assert main(["export", "me/model", str(tmp_path / "out")]) == 2
    assert one_line(capsys).endswith("answers 500: try again later")


def test_no_network_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "me/model", str(tmp_path / "out")]) == 2
    assert "http://127.0.0.1:9 cannot be reached (ConnectError" in one_line(capsys)


def test_a_token_opens_a_gated_model_and_stays_with_the_hub(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("me/model", tiny(tmp_path / "model"))
    server.gated, server.token = {"me/model"}, "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    resolve_source("me/model")
    assert server.transfers(WEIGHTS)
    for request in server.requests:
        assert ("authorization" in request.headers) == (not request.path.startswith("/storage/"))


def test_nothing_is_told_about_this_machine(server: Hub, tmp_path: Path) -> None:
    server.add("me/model", tiny(tmp_path / "model"))
    resolve_source("me/model")
    agents = " ".join(request.headers["user-agent"] for request in server.requests)
    assert "torch" not in agents
    assert os.uname().release not in agents
    known = ("/api/models/me/model/revision/", "/me/model/resolve/", "/storage/me/model/")
    assert all(request.path.startswith(known) for request in server.requests), "telemetry is another path"


@pytest.mark.parametrize("started", [False, True])
def test_the_disk_is_asked_first(
    server: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: bool,
) -> None:
    files = tiny(tmp_path / "model")
    server.add("google/gemma-4-E2B-it", files)
    server.add_folder("google/gemma-4-E2B-it-assistant", NANO / "drafter")
    if started:
        resolve_source("google/gemma-4-E2B-it")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 2_000_000_000))
    assert main(["export", "gemma-4-e2b", str(tmp_path / "out")]) == 2
    said = one_line(capsys)
    rest = "0 bytes" if started else "1 MB"
    needs = f"{rest} for google/gemma-4-E2B-it, 2 MB for google/gemma-4-E2B-it-assistant, 3.0 GB for the bundle"
    assert said.startswith(f"edge-runtime: not enough disk: 3.0 GB needed ({needs}), 2.0 GB free at {tmp_path}")
    assert len(server.transfers(WEIGHTS)) == int(started)


def test_an_existing_bundle_stops_it_before_the_fetch(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("me/model", tiny(tmp_path / "model"))
    (tmp_path / "out").mkdir()
    assert main(["export", "me/model", str(tmp_path / "out")]) == 2
    assert "exists and is no bundle" in one_line(capsys)
    assert server.requests == []


def test_a_folder_comes_before_the_hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny(tmp_path / "gemma-4-e2b")
    found = resolve_source("gemma-4-e2b")
    assert (found.checkpoint, found.recipe) == (Path("gemma-4-e2b"), None)
    assert found.source == {"checkpoint": "gemma-4-e2b"}
    assert server.requests == []


def test_a_gguf_is_fetched_with_its_projector(server: Hub) -> None:
    files = {"gemma-4-E2B_q4_0-it.gguf": b"GGUF text", "gemma-4-E2B-it-mmproj.gguf": b"GGUF towers"}
    server.add("google/gemma-4-E2B-it-qat-q4_0-gguf", files | {"other.gguf": b"x"})
    paths = fetch_model("gemma-4-e2b-gguf")
    assert {path.name: path.read_bytes() for path in paths} == files
    assert not any("other" in request.path for request in server.requests)


def test_a_gguf_that_was_renamed_is_named(server: Hub) -> None:
    server.add("google/gemma-4-E2B-it-qat-q4_0-gguf", {"new-name.gguf": b"x"})
    with pytest.raises(EdgeRuntimeError, match=r"has no gemma-4-E2B_q4_0-it.gguf \(its GGUF files: new-name.gguf\)"):
        fetch_model("gemma-4-e2b-gguf")


def test_without_huggingface_hub_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from edge_runtime.cli.main import main; sys.exit(main(['export', 'me/model', '/tmp/never']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert (
        result.stderr
        == "edge-runtime: fetching from the hub needs huggingface_hub: pip install 'edge-runtime[export]'\n"
    )
