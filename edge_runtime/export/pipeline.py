"""Checkpoint folder -> bundle folder."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import FileEntry, Manifest, is_bundle, write_manifest
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.audio import build_audio
from edge_runtime.export.decoder import build_decoder
from edge_runtime.export.drafter import build_drafter
from edge_runtime.export.graph import Graph, WeightError
from edge_runtime.export.safetensors import Checkpoint
from edge_runtime.export.tables import write_embedding, write_per_layer_embedding
from edge_runtime.export.vision import build_vision
from edge_runtime.export.weights import Weights
from edge_runtime.gemma.geometry import AssistantGeometry, Geometry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_runtime.bundle.tables import TableSpec
    from edge_runtime.gemma.geometry import AudioGeometry, VisionGeometry

    Progress = Callable[[str, int, int], None]
    """Called with what is being done, how many weights are done and about how many there are."""
    Step = Callable[["Recipe"], dict[str, TableSpec] | None]

_PARTIAL = ".partial"


@dataclass(frozen=True)
class Recipe:
    """How many bits the weights of each part keep."""

    decoder: int
    towers: int
    embedding: int
    per_layer_embedding: int


# The embedding is read a few rows at a time from disk, so 8 bits cost no memory; its int4 copy is the output head.
RECIPES = {
    "int4": Recipe(decoder=4, towers=8, embedding=8, per_layer_embedding=4),
    "fp32": Recipe(decoder=32, towers=32, embedding=32, per_layer_embedding=32),
}


@dataclass
class ExportReport:
    """What an export did."""

    bundle: Path
    recipe: str
    seconds: float
    peak_memory: int
    """Bytes: the largest resident size of this process so far."""
    sizes: dict[str, int]
    """Bytes of each file."""
    errors: list[WeightError] = field(default_factory=list)
    """Rounding error of each matrix, in the order of the graphs."""

    def to_json(self) -> dict[str, Any]:
        """The object that `export --json` prints."""
        ranked = sorted(self.errors, key=lambda e: e.relative, reverse=True)
        summary: dict[str, Any] = {}
        for bits in sorted({e.bits for e in ranked}):
            values = [e.relative for e in ranked if e.bits == bits]
            summary[f"int{bits}"] = {
                "tensors": len(values),
                "mean": sum(values) / len(values),
                "worst": max(values),
                "worst_tensor": next(e.name for e in ranked if e.bits == bits),
            }
        return {
            "bundle": str(self.bundle),
            "recipe": self.recipe,
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": self.peak_memory,
            "total_bytes": sum(self.sizes.values()),
            "sizes": self.sizes,
            "relative_error": summary,
            "tensors": [dataclasses.asdict(e) for e in self.errors],
        }


def export_checkpoint(
    checkpoint: Path,
    bundle: Path,
    *,
    recipe: str = "int4",
    drafter: Path | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> ExportReport:
    """Turns a Hugging Face checkpoint of Gemma 4 into a bundle.

    The bundle is written beside its place and renamed when it is whole; an export that is killed leaves nothing under
    that name.

    Args:
        checkpoint: Folder with config.json, safetensors and tokenizer.
        bundle: The folder to make.
        recipe: One of `RECIPES`.
        drafter: Folder of a gemma4_assistant checkpoint to put into the bundle.
        progress: Told of every step.
        force: Replace `bundle` if it is one; anything else is never replaced.

    Raises:
        EdgeRuntimeError: a wrong folder, an unknown recipe or architecture, a missing tensor, `bundle` exists, or the
            disk is full.
    """
    started = time.monotonic()
    checkpoint, bundle = Path(checkpoint), Path(bundle)
    if recipe not in RECIPES:
        raise EdgeRuntimeError(f"recipe {recipe!r} is not known; there are {', '.join(RECIPES)}")
    _check_target(bundle, force=force)
    geometry = Geometry.from_config(read_config(checkpoint))
    if drafter is not None:
        geometry = dataclasses.replace(geometry, assistant=AssistantGeometry.from_config(read_config(Path(drafter))))
    with contextlib.ExitStack() as stack:
        tensors = stack.enter_context(Checkpoint(checkpoint))
        draft_tensors = None if drafter is None else stack.enter_context(Checkpoint(Path(drafter)))
        try:
            temporary = stack.enter_context(_temporary_folder(bundle))
            job = _Export(temporary, geometry, recipe, tensors, draft_tensors, progress)
            sizes = job.run(checkpoint)
            _move(temporary, bundle)
        except OSError as error:
            raise EdgeRuntimeError(f"{error.filename or bundle}: {error.strerror}", code="internal") from error
    return ExportReport(bundle, recipe, time.monotonic() - started, peak_memory(), sizes, job.errors)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint folder.

    Raises:
        EdgeRuntimeError: no such folder, no config.json in it, or no JSON object in that.
    """
    if not folder.is_dir():
        raise EdgeRuntimeError(f"{folder} is no folder" if folder.exists() else f"{folder} does not exist")
    path = folder / names.CONFIG
    if not path.is_file():
        raise EdgeRuntimeError(f"{folder} is no Hugging Face checkpoint: it has no {names.CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EdgeRuntimeError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise EdgeRuntimeError(f"{path} holds no JSON object")
    return config


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        # getrusage would add what the process that started this one held at the time.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _check_target(bundle: Path, *, force: bool) -> None:
    if not (bundle.exists() or bundle.is_symlink()):
        return
    if not is_bundle(bundle):
        raise EdgeRuntimeError(f"{bundle} exists and is no bundle; it is left alone")
    if not force:
        raise EdgeRuntimeError(f"{bundle} exists; --force replaces it")


@contextlib.contextmanager
def _temporary_folder(bundle: Path) -> Iterator[Path]:
    """A folder beside `bundle` that is gone afterwards, unless it was renamed."""
    bundle.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{bundle.name}."
    _sweep(bundle.parent, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_PARTIAL, dir=bundle.parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock, which a dying process lets go of; False if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _sweep(parent: Path, prefix: str) -> None:
    """Removes what exports to the same name left behind when they were killed."""
    for stale in parent.glob(f"{prefix}*{_PARTIAL}"):
        with _locked(stale) as free:
            if free:
                shutil.rmtree(stale, ignore_errors=True)


def _move(temporary: Path, bundle: Path) -> None:
    """Puts the finished folder in its place; an older bundle there goes first out of the way, then away."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)
    if not bundle.exists():
        temporary.rename(bundle)
        return
    with _temporary_folder(bundle) as old:
        bundle.rename(old / bundle.name)
        temporary.rename(bundle)


@dataclass
class _Export:
    folder: Path
    geometry: Geometry
    recipe: str
    tensors: Checkpoint
    draft_tensors: Checkpoint | None
    progress: Progress | None
    errors: list[WeightError] = field(default_factory=list)
    label: str = ""
    done: int = 0
    total: int = 0

    def run(self, checkpoint: Path) -> dict[str, int]:
        """Writes all files; the result is their sizes."""
        bits = RECIPES[self.recipe]
        self.total = self.tensors.values() + (self.draft_tensors.values() if self.draft_tensors else 0)
        tables: dict[str, TableSpec] = {}
        for label, step in self._steps():
            self.label = label
            self._tick(0)
            tables |= step(bits) or {}
        self.label, self.done = "checksums", self.total
        self._tick(0)
        for name in names.COPIED:
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, self.folder / name)
        files = {path.name: FileEntry.of(path) for path in sorted(self.folder.iterdir())}
        source = {"checkpoint": checkpoint.resolve().name}
        name = checkpoint.resolve().name
        write_manifest(self.folder, Manifest(name, self.recipe, self.geometry, source, tables, files))
        return {name: entry.size for name, entry in files.items()}

    def _tick(self, values: int) -> None:
        self.done = min(self.done + values, self.total)
        if self.progress:
            self.progress(self.label, self.done, self.total)

    def _steps(self) -> list[tuple[str, Step]]:
        steps: list[tuple[str, Step]] = [
            ("embedding", self._embedding),
            ("decoder", self._decoder),
        ]
        if self.geometry.text.ple_dim:
            steps.insert(1, ("per-layer embedding", self._per_layer_embedding))
        if vision := self.geometry.vision:
            steps.append(("vision tower", lambda bits: self._vision(bits, vision)))
        if audio := self.geometry.audio:
            steps.append(("audio tower", lambda bits: self._audio(bits, audio)))
        if (assistant := self.geometry.assistant) and (tensors := self.draft_tensors):
            steps.append(("drafter", lambda bits: self._drafter(bits, tensors, assistant)))
        return steps

    def _embedding(self, bits: Recipe) -> dict[str, TableSpec]:
        weights = Weights.of_decoder(self.tensors)
        return {
            names.EMBED_TABLE: write_embedding(self.folder, weights, self.geometry.text, bits.embedding, self._tick)
        }

    def _per_layer_embedding(self, bits: Recipe) -> dict[str, TableSpec]:
        weights, text = Weights.of_decoder(self.tensors), self.geometry.text
        spec = write_per_layer_embedding(self.folder, weights, text, bits.per_layer_embedding, self._tick)
        return {names.PLE_TABLE: spec}

    def _decoder(self, bits: Recipe) -> None:
        with self._graph(names.DECODER, bits.decoder) as graph:
            build_decoder(graph, Weights.of_decoder(self.tensors), self.geometry.text)

    def _vision(self, bits: Recipe, vision: VisionGeometry) -> None:
        tower, embedder = (Weights.of_part(self.tensors, name) for name in ("vision_tower", "embed_vision"))
        with self._graph(names.VISION, bits.towers) as graph:
            build_vision(graph, tower, embedder, vision, self.geometry.text.hidden_size)

    def _audio(self, bits: Recipe, audio: AudioGeometry) -> None:
        tower, embedder = (Weights.of_part(self.tensors, name) for name in ("audio_tower", "embed_audio"))
        with self._graph(names.AUDIO, bits.towers) as graph:
            build_audio(graph, tower, embedder, audio, self.geometry.text.hidden_size)

    def _drafter(self, bits: Recipe, tensors: Checkpoint, assistant: AssistantGeometry) -> None:
        with self._graph(names.DRAFTER, bits.decoder) as graph:
            build_drafter(graph, tensors, assistant, self.geometry.text)

    @contextlib.contextmanager
    def _graph(self, file: str, bits: int) -> Iterator[Graph]:
        with Graph(self.folder, file, bits, self._tick) as graph:
            yield graph
            graph.save()
        self.errors += graph.errors
