"""Checkpoint folder -> bundle folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import Manifest, seal
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.audio import build_audio
from edge_runtime.export.calibrated import Moments
from edge_runtime.export.decoder import build_decoder
from edge_runtime.export.drafter import build_drafter
from edge_runtime.export.graph import Graph
from edge_runtime.export.memory import Budget, budget, bundle_bytes, peak_memory
from edge_runtime.export.qat import adopt_grids
from edge_runtime.export.quant import FP32
from edge_runtime.export.recipes import HEADS, KEPT, RECIPES, Recipe, mixed, uniform
from edge_runtime.export.safetensors import Checkpoint
from edge_runtime.export.source import check_disk
from edge_runtime.export.tables import shared_spec, write_embedding, write_per_layer_embedding
from edge_runtime.export.target import check_target, put, temporary_folder
from edge_runtime.export.vision import build_vision
from edge_runtime.export.vocabulary import copy_tokenizer
from edge_runtime.export.weights import Weights
from edge_runtime.gemma.geometry import AssistantGeometry, Geometry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from edge_runtime.bundle.checksums import Measured
    from edge_runtime.bundle.shared_table import SharedSpec
    from edge_runtime.bundle.tables import TableSpec
    from edge_runtime.export.data import WeightError
    from edge_runtime.export.graph import Plan
    from edge_runtime.export.parallel import Pace
    from edge_runtime.gemma.geometry import AudioGeometry, VisionGeometry

    Progress = Callable[[str, int, int], None]
    """Called with what is being done, how many weights are done and about how many there are."""
    Step = Callable[[Recipe], dict[str, TableSpec] | None]


@dataclass
class ExportReport:
    """What an export did."""

    bundle: Path
    recipe: str
    seconds: float
    peak_memory: int
    """Bytes: the largest resident size of this process so far."""
    budget: Budget
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
            "planned_memory_bytes": self.budget.peak,
            "threads": self.budget.pace.workers,
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
    source: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    ple_bits: int | None = None,
    head_bits: int | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    force: bool = False,
    moments: Path | None = None,
) -> ExportReport:
    """Turns a Hugging Face checkpoint of Gemma 4 into a bundle.

    The bundle is written beside its place and renamed when it is whole; an export that is killed leaves nothing under
    that name.

    Args:
        checkpoint: Folder with config.json, safetensors and tokenizer.
        bundle: The folder to make.
        recipe: One of `RECIPES`.
        drafter: Folder of a gemma4_assistant checkpoint to put into the bundle.
        source: Where the checkpoint came from, for the manifest; left out, the folder's name.
        progress: Told of every step.
        ple_bits: 4 or 8 for the per-layer embedding; left out, as the recipe says.
        head_bits: 4 or 8 for the output head, which is the token embedding too; left out, as the recipe says.
        threads: At most so many; left out, one for each core.
        max_memory: Bytes that the process stays under; left out, it adapts to what the machine has free.
        force: Replace `bundle` if it is one; anything else is never replaced.
        moments: What `edge_runtime.evaluation.moments.collect` wrote, for calibrated rounding of the decoder.

    Raises:
        EdgeRuntimeError: a wrong folder, an unknown recipe or architecture, a missing tensor, `bundle` exists, or the
            disk is full, or `max_memory` is too little.
    """
    started = time.monotonic()
    checkpoint, bundle = Path(checkpoint), Path(bundle)
    check_request(bundle, recipe, force=force)
    config = read_config(checkpoint)
    draft_config = {} if drafter is None else read_config(Path(drafter))
    geometry = Geometry.from_config(config)
    if drafter is not None:
        geometry = dataclasses.replace(geometry, assistant=AssistantGeometry.from_config(draft_config))
    bits = RECIPES[recipe]
    if ple_bits is not None:
        if not geometry.text.ple_dim:
            raise EdgeRuntimeError("this model has no per-layer embedding that could have other bits")
        bits = dataclasses.replace(bits, per_layer_embedding=ple_bits)
    if head_bits is not None:
        if bits.mixed or bits.decoder == FP32:
            raise EdgeRuntimeError(f"recipe {recipe} chooses its head's bits itself")
        bits = dataclasses.replace(bits, head=HEADS[head_bits])
    planned = budget(geometry, threads=threads, limit=max_memory)
    with contextlib.ExitStack() as stack:
        tensors = stack.enter_context(Checkpoint(checkpoint))
        draft_tensors = None if drafter is None else stack.enter_context(Checkpoint(Path(drafter)))
        origin = dict(source or {"checkpoint": checkpoint.resolve().name})
        keep = adopt_grids(tensors, config, origin["checkpoint"])
        if draft_tensors:
            adopt_grids(draft_tensors, draft_config, origin.get("drafter", str(drafter)))
        check_disk([(bundle, bundle_bytes(bits, tensors, draft_tensors), "the bundle")])
        try:
            temporary = stack.enter_context(temporary_folder(bundle))
            known = Moments.open(moments) if moments else None
            job = _Export(
                temporary, geometry, recipe, bits, tensors, draft_tensors, origin, progress, planned.pace, known, keep
            )
            sizes = job.run(checkpoint)
            put(temporary, bundle)
        except OSError as error:
            raise EdgeRuntimeError(f"{error.filename or bundle}: {error.strerror}", code="internal") from error
    return ExportReport(bundle, recipe, time.monotonic() - started, peak_memory(), planned, sizes, job.errors)


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


def check_request(bundle: Path, recipe: str, *, force: bool) -> None:
    """What can be said before the checkpoint is there.

    Raises:
        EdgeRuntimeError: no such recipe, or `bundle` exists and may not be replaced.
    """
    if recipe not in RECIPES:
        raise EdgeRuntimeError(f"recipe {recipe!r} is not known; there are {', '.join(RECIPES)}")
    check_target(bundle, force=force)


@dataclass
class _Export:
    folder: Path
    geometry: Geometry
    recipe: str
    bits: Recipe
    tensors: Checkpoint
    draft_tensors: Checkpoint | None
    source: dict[str, str]
    progress: Progress | None
    pace: Pace
    moments: Moments | None = None
    keep: bool = False
    errors: list[WeightError] = field(default_factory=list)
    measured: dict[str, Measured] = field(default_factory=dict)
    formats: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    shared: SharedSpec | None = None
    label: str = ""
    done: int = 0
    total: int = 0

    def run(self, checkpoint: Path) -> dict[str, int]:
        """Writes all files; the result is their sizes."""
        self.total = self.tensors.values() + (self.draft_tensors.values() if self.draft_tensors else 0)
        tables: dict[str, TableSpec] = {}
        for label, step in self._steps():
            self.label = label
            self._tick(0)
            tables |= step(self.bits) or {}
        self.label, self.done = "checksums", self.total
        self._tick(0)
        for name in names.COPIED:
            if (checkpoint / name).is_file():
                copy = copy_tokenizer if name == names.TOKENIZER else shutil.copyfile
                copy(checkpoint / name, self.folder / name)
        name = self.source["checkpoint"].rpartition("/")[2]  # without the owner, of a model on the hub
        manifest = Manifest(
            name, self.recipe, self.geometry, self.source, tables, embedding=self.shared, formats=self.formats
        )
        files = seal(self.folder, manifest, self.measured).files
        return {name: entry.size for name, entry in files.items()}

    def _tick(self, values: int) -> None:
        self.done = min(self.done + values, self.total)
        if self.progress:
            self.progress(self.label, self.done, self.total)

    def _steps(self) -> list[tuple[str, Step]]:
        steps: list[tuple[str, Step]] = [("decoder", self._decoder), ("embedding", self._embedding)]
        if self.geometry.text.ple_dim:
            steps.append(("per-layer embedding", self._per_layer_embedding))
        if vision := self.geometry.vision:
            steps.append(("vision tower", lambda bits: self._vision(bits, vision)))
        if audio := self.geometry.audio:
            steps.append(("audio tower", lambda bits: self._audio(bits, audio)))
        if (assistant := self.geometry.assistant) and (tensors := self.draft_tensors):
            steps.append(("drafter", lambda bits: self._drafter(bits, tensors, assistant)))
        return steps

    def _embedding(self, bits: Recipe) -> dict[str, TableSpec]:
        """A table of its own, where the output head cannot be it."""
        if self.shared:
            return {}
        weights = Weights.of_decoder(self.tensors)
        spec, measured = write_embedding(
            self.folder, weights, self.geometry.text, bits.decoder.bits, self.pace, self._tick
        )
        self.measured[names.EMBED_TABLE] = measured
        return {names.EMBED_TABLE: spec}

    def _per_layer_embedding(self, bits: Recipe) -> dict[str, TableSpec]:
        weights, text = Weights.of_decoder(self.tensors), self.geometry.text
        spec, measured = write_per_layer_embedding(
            self.folder, weights, text, bits.per_layer_embedding, self.pace, self._tick
        )
        self.measured[names.PLE_TABLE] = measured
        return {names.PLE_TABLE: spec}

    def _decoder(self, bits: Recipe) -> None:
        weights, text = Weights.of_decoder(self.tensors), self.geometry.text
        plan = uniform(bits.decoder, bits.head)
        if self.keep and bits.decoder != FP32:
            plan = uniform(KEPT, keep=True)
        elif bits.mixed:
            plan = mixed(bits, lambda graph: build_decoder(graph, weights, text))
        with self._graph(names.DECODER, plan, self.moments) as graph:
            build_decoder(graph, weights, text)
            self.shared = shared_spec(graph, weights, self.geometry.text)

    def _vision(self, bits: Recipe, vision: VisionGeometry) -> None:
        tower, embedder = (Weights.of_part(self.tensors, name) for name in ("vision_tower", "embed_vision"))
        with self._graph(names.VISION, uniform(bits.towers, keep=self.keep)) as graph:
            build_vision(graph, tower, embedder, vision, self.geometry.text.hidden_size)

    def _audio(self, bits: Recipe, audio: AudioGeometry) -> None:
        tower, embedder = (Weights.of_part(self.tensors, name) for name in ("audio_tower", "embed_audio"))
        with self._graph(names.AUDIO, uniform(bits.towers, keep=self.keep)) as graph:
            build_audio(graph, tower, embedder, audio, self.geometry.text.hidden_size)

    def _drafter(self, bits: Recipe, tensors: Checkpoint, assistant: AssistantGeometry) -> None:
        with self._graph(names.DRAFTER, uniform(bits.drafter)) as graph:
            build_drafter(graph, tensors, assistant, self.geometry.text)

    @contextlib.contextmanager
    def _graph(self, file: str, plan: Plan, moments: Moments | None = None) -> Iterator[Graph]:
        with Graph(self.folder, file, plan, self._tick, self.pace, moments=moments) as graph:
            yield graph
            self.measured[names.data_file(file)] = graph.save()
        self.errors += graph.errors
        formats: dict[str, list[str]] = {}
        for name, places in graph.places.items():
            formats.setdefault(str(places.format), []).append(name)
        self.formats[file] = formats
