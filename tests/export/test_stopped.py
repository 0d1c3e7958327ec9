"""An export that is killed, stopped or runs out of disk leaves nothing half-made."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from edge_runtime.bundle.manifest import read_manifest, verify
from edge_runtime.cli.main import main
from edge_runtime.export import export_checkpoint, target
from tests.export.tiny import write_checkpoint

EXPORT = "import sys; from edge_runtime.cli.main import main; print('begun', flush=True); sys.exit(main(sys.argv[1:]))"


class Made(NamedTuple):
    checkpoint: Path
    files: dict[str, bytes]
    """Of its bundle."""
    seconds: float
    """An export in a process of its own takes, imports not counted."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    write_checkpoint(folder / "model", dtype="BF16", vocab_size=20_000, vocab_size_per_layer_input=20_000)
    with begun(folder / "model", folder / "bundle") as process:
        started = time.monotonic()
        assert process.wait() == 0
    return Made(folder / "model", contents(folder / "bundle"), time.monotonic() - started)


def begun(checkpoint: Path, bundle: Path, *options: str) -> subprocess.Popen[str]:
    """A process that has imported what it needs and is about to export."""
    words = [sys.executable, "-c", EXPORT, "export", str(checkpoint), str(bundle), *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    return process


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kill_after(seconds: float, made: Made, bundle: Path, *options: str) -> bool:
    """Whether the export was still under way."""
    with begun(made.checkpoint, bundle, *options) as process:
        time.sleep(seconds)
        process.kill()
        return process.wait() == -signal.SIGKILL


def check_kills(made: Made, folder: Path, moments: list[float]) -> None:
    killed = 0
    for moment in moments:
        bundle = folder / "bundle"
        killed += kill_after(moment * made.seconds, made, bundle)
        if bundle.exists():
            assert contents(bundle) == made.files
            shutil.rmtree(bundle)
        export_checkpoint(made.checkpoint, bundle)
        assert contents(bundle) == made.files
        assert names(folder) == ["bundle"]
        shutil.rmtree(bundle)
    assert killed >= len(moments) // 2


def test_killed_export_leaves_no_bundle_and_the_next_starts_clean(made: Made, tmp_path: Path) -> None:
    check_kills(made, tmp_path, [0.3, 0.6, 0.9])


@pytest.mark.slow
def test_killed_at_many_moments(made: Made, tmp_path: Path) -> None:
    rng = random.Random(0)
    check_kills(made, tmp_path, [rng.random() for _ in range(30)])


def check_replacing(made: Made, folder: Path, moments: list[float]) -> None:
    bundle = folder / "bundle"
    export_checkpoint(made.checkpoint, bundle, recipe="fp32")
    for moment in moments:
        kill_after(moment * made.seconds, made, bundle, "--force")
        assert verify(bundle) == []
        assert read_manifest(bundle).recipe in {"fp32", "int4"}
    export_checkpoint(made.checkpoint, bundle, force=True)
    assert contents(bundle) == made.files
    assert names(folder) == ["bundle"]


def test_killed_replacement_leaves_the_old_or_the_new_bundle(made: Made, tmp_path: Path) -> None:
    check_replacing(made, tmp_path, [0.5, 1.0])


@pytest.mark.slow
def test_replacement_killed_at_many_moments(made: Made, tmp_path: Path) -> None:
    rng = random.Random(1)
    # Most of them near the end, where the folders change places.
    check_replacing(made, tmp_path, [rng.uniform(0.7, 1.1) for _ in range(25)])


# Sends itself a signal in the middle, when a file of weights is whole, and says what lay there.
STOPPED = """
import os, signal, sys
from pathlib import Path
from edge_runtime.cli.main import main
from edge_runtime.export.data import DataFile

number, seen, *words = sys.argv[1:]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, which the export respects
finish = DataFile.finish

def stopped(self):
    measured = finish(self)
    found = Path(words[2]).parent.glob(".bundle.*.partial/*data")
    Path(seen).write_text(" ".join(path.name for path in found))
    os.kill(os.getpid(), int(number))
    return measured

DataFile.finish = stopped
sys.exit(main(words))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_it_cleanly(made: Made, tmp_path: Path, number: signal.Signals) -> None:
    seen = tmp_path / "seen"
    words = [str(int(number)), str(seen), "export", str(made.checkpoint), str(tmp_path / "out" / "bundle")]
    done = subprocess.run([sys.executable, "-c", STOPPED, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
    assert seen.read_text()
    assert names(tmp_path / "out") == []


def test_full_disk_is_one_line_and_leaves_nothing(made: Made, tmp_path: Path) -> None:
    largest = max(map(len, made.files.values()))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, largest // 2))

    words = [sys.executable, "-m", "edge_runtime", "export", str(made.checkpoint), str(tmp_path / "bundle")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=limited)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("edge-runtime: ")
    assert done.stderr.endswith(": File too large\n")
    assert done.stderr.count("\n") == 1
    assert names(tmp_path) == []


def on_small_disk(made: Made, mount: Path, options: str) -> subprocess.CompletedProcess[str]:
    """Exports to a file system of its own, in memory; skips the test where none can be made."""
    mount.mkdir()
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare here")
    script = f'mount -t tmpfs -o {options} tmpfs "$0" || exit 99; "$@"; code=$?; ls -A "$0"; exit $code'
    words = ["unshare", "-rm", "sh", "-c", script, str(mount)]
    words += [sys.executable, "-m", "edge_runtime", "export", str(made.checkpoint), str(mount / "bundle")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("no file system can be mounted here")
    return done


def test_disk_that_fills_up_in_the_middle(made: Made, tmp_path: Path) -> None:
    # Room for the weights, but not for so many files.
    done = on_small_disk(made, tmp_path / "disk", "size=64m,nr_inodes=5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("edge-runtime: ")
    assert done.stderr.endswith(": No space left on device\n")
    assert done.stderr.count("\n") == 1


def test_disk_that_is_too_small_is_refused_beforehand(made: Made, tmp_path: Path) -> None:
    done = on_small_disk(made, tmp_path / "disk", "size=1m")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("edge-runtime: not enough disk: ")
    assert "for the bundle" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_exchange_of_names_the_old_bundle_goes_last(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "_exchange", lambda *_: False)
    bundle = tmp_path / "bundle"
    export_checkpoint(made.checkpoint, bundle, recipe="fp32")
    export_checkpoint(made.checkpoint, bundle, force=True)
    assert contents(bundle) == made.files
    rename = Path.rename

    def interrupted(path: Path, name: Path) -> Path:
        if name == bundle and path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, name)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(made.checkpoint, bundle, recipe="fp32", force=True)
    assert contents(bundle) == made.files
    assert names(tmp_path) == ["bundle"]


def test_link_to_a_bundle_is_replaced_by_the_bundle(made: Made, tmp_path: Path) -> None:
    export_checkpoint(made.checkpoint, tmp_path / "old")
    (tmp_path / "link").symlink_to("old")
    assert main(["export", str(made.checkpoint), str(tmp_path / "link"), "--force", "--recipe", "fp32"]) == 0
    assert not (tmp_path / "link").is_symlink()
    assert read_manifest(tmp_path / "link").recipe == "fp32"
    assert verify(tmp_path / "old") == []
    assert names(tmp_path) == ["link", "old"]
