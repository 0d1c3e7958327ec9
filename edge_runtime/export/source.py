"""What `export` is given: a checkpoint folder, a hub id or a recipe's name. All end as folders on this disk."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import recipes
from edge_runtime.bundle import names
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import hub
from edge_runtime.machine import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from edge_runtime.export.hub import Choose, Listing, Progress
    from edge_runtime.recipes import ModelRecipe

    Note = Callable[[str], None]

_INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"model(-\d+-of-(?P<count>\d+))?\.safetensors")
_SMALL = re.compile(r"[^/]+\.(json|jinja)|tokenizer\.model")
_BUNDLE_SHARE = {"fp32": 2.05, "int8": 0.6}  # bytes of a bundle for one of a bfloat16 checkpoint; others are 4 bits
_FOUR_BIT_SHARE = 0.32
_RUN_GGUF = "run its file as it is (`edge-runtime ask --model FILE`)"


@dataclass(frozen=True)
class Source:
    """What to export."""

    checkpoint: Path
    drafter: Path | None
    recipe: str | None
    """How the model's recipe wants it rounded; None: there is no recipe for it."""
    source: dict[str, str] = field(default_factory=dict)
    """For the bundle's manifest: hub ids and the commits that were fetched; of a folder on this disk, its name."""


@dataclass(frozen=True)
class _Part:
    """A checkpoint: in a folder of this disk, or listed and to be fetched."""

    choose: Choose
    folder: Path | None = None
    listing: Listing | None = None
    repo: str = ""
    model: ModelRecipe | None = None

    def fetched(self, progress: Progress | None) -> Path:
        if self.listing:
            return hub.fetch(self.listing, self.choose, progress)
        assert self.folder  # noqa: S101  one of the two is set
        return self.folder


def resolve_source(
    text: str,
    *,
    drafter: str | None = None,
    recipe: str | None = None,
    bundle: Path | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Source:
    """Finds a checkpoint and its drafter, and fetches them if they are not on this disk.

    Args:
        text: A folder, `owner/name[@revision]` on the hub, or `name[@revision]` of a recipe. A folder comes first.
        drafter: The same for the drafter; left out, the one that the model's recipe names.
        recipe: How the bundle will be rounded, for an estimate of its size; left out, as the model's recipe says.
        bundle: Where the bundle will be made: its disk must have room too.
        progress: Told of every block that arrives.
        note: Told, in one line, when the hub did not answer and the cache had to do.

    Raises:
        EdgeRuntimeError: no such thing, no access to it, no network, or not enough disk.
    """
    model = _find(text, "onnx", note)
    parts = [model]
    if chosen := drafter or (model.model.drafter if model.model else ""):
        parts.append(_find(chosen, "drafter", note))
    room = [_room(part) for part in parts if part.listing]
    if room and bundle is not None:
        room.append((bundle, _bundle_bytes(model, recipe), "the bundle"))
    check_disk(room)
    folders = [part.fetched(progress) for part in parts]
    source = _described(model, folders[0], "checkpoint", "revision")
    if model.model:
        source |= {"model": model.model.name, "licence": model.model.licence}
    if len(parts) > 1:
        source |= _described(parts[1], folders[1], "drafter", "drafter_revision")
    rounding = model.model.recipe if model.model else None
    return Source(folders[0], folders[1] if len(folders) > 1 else None, rounding, source)


def fetch_model(name: str, *, progress: Progress | None = None, note: Note | None = None) -> list[Path]:
    """Fetches what a recipe names.

    Args:
        name: `name[@revision]` of a recipe.
        progress: As for `resolve_source`.
        note: As for `resolve_source`.

    Returns:
        Of a GGUF, the file and that of its towers; of a checkpoint, its folder and its drafter's.

    Raises:
        EdgeRuntimeError: no such recipe, no access to it, no network, or not enough disk.
    """
    name, _, revision = name.partition("@")
    model = recipes.get(name)
    if model.kind == "onnx":
        source = resolve_source(f"{name}@{revision or model.revision}", progress=progress, note=note)
        return [source.checkpoint] + ([source.drafter] if source.drafter else [])
    part = _on_hub(model.source, revision or model.revision, model, note)
    check_disk([_room(part)] if part.listing else [])
    folder = part.fetched(progress)
    return [folder / file for file in (model.file, model.projector) if file] or [folder]


def check_disk(room: Iterable[tuple[Path, int, str]]) -> None:
    """Compares what will be written with what is free.

    Args:
        room: Where, how many bytes, and what for. Places on one disk are added up.

    Raises:
        EdgeRuntimeError: a disk has less; the line names both.
    """
    disks: dict[int, tuple[Path, list[tuple[int, str]]]] = {}
    for path, size, purpose in room:
        place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        disks.setdefault(place.stat().st_dev, (place, []))[1].append((size, purpose))
    for place, needs in disks.values():
        total, free = sum(size for size, _ in needs), shutil.disk_usage(place).free
        if total > free:
            parts = ", ".join(f"{readable(size)} for {purpose}" for size, purpose in needs)
            raise EdgeRuntimeError(
                f"not enough disk: {readable(total)} needed ({parts}), {readable(free)} free at {place}",
                code="internal",
            )


def checkpoint_files(present: Collection[str], *, drafter: bool = False) -> list[str]:
    """The files of a checkpoint that an export reads, the weights last.

    Args:
        present: Names of the files there are.
        drafter: Whether it is one; it uses its model's tokenizer.

    Raises:
        EdgeRuntimeError: one that is needed is missing.
    """
    needed = [names.CONFIG] if drafter else [names.CONFIG, names.TOKENIZER]
    weights = sorted(name for name in present if (match := _WEIGHTS.fullmatch(name)) and bool(match["count"]))
    if _INDEX not in present:
        weights = ["model.safetensors"]
    elif not weights or len(weights) != int(_WEIGHTS.fullmatch(weights[0])["count"]):  # type: ignore[index]
        needed.append("all shards of model.safetensors")
    if missing := [name for name in (*needed, *weights) if name not in present]:
        if any(name.endswith(".gguf") for name in present):
            raise EdgeRuntimeError(f"it holds GGUF files, which need no export: {_RUN_GGUF}")
        raise EdgeRuntimeError(f"it is no checkpoint of safetensors: it lacks {', '.join(missing)}")
    return [*sorted(name for name in present if _SMALL.fullmatch(name)), *weights]


def _find(text: str, kind: str, note: Note | None) -> _Part:
    """The checkpoint that `text` means, which must be of the kind "onnx" or "drafter"."""
    folder = Path(text).expanduser()
    if folder.exists() or text.startswith(("/", ".", "~")):
        return _Part(_chooser(None, kind), folder)
    name, _, revision = text.partition("@")
    if model := recipes.find(name):
        _check_kind(model, kind)
        return _on_hub(model.source, revision or model.revision, model, note)
    if match := recipes.HUB_ID.fullmatch(text):
        return _on_hub(match["id"], match["revision"] or "main", None, note, kind)
    raise EdgeRuntimeError(f"{text!r} is no folder, no hub id (owner/name) and no recipe: {recipes.hint(name)}")


def _check_kind(model: ModelRecipe, kind: str) -> None:
    if model.kind == kind:
        return
    if kind == "drafter":
        raise EdgeRuntimeError(f"{model.name} is no drafter")
    if model.kind == "gguf":
        raise EdgeRuntimeError(
            f"{model.name} is a GGUF and needs no export: `edge-runtime models --fetch {model.name}`, then {_RUN_GGUF}"
        )
    raise EdgeRuntimeError(f"{model.name} is a drafter: it is exported with its model, by --drafter {model.name}")


def _on_hub(repo: str, revision: str, model: ModelRecipe | None, note: Note | None, kind: str = "") -> _Part:
    choose = _chooser(model, model.kind if model else kind)
    folder = hub.cached(repo, revision, choose)
    if folder and revision == folder.name:
        return _Part(choose, folder, repo=repo, model=model)
    if hub.offline() and folder is None:
        raise EdgeRuntimeError(f"{repo} is not in {hub.cache_folder()} and HF_HUB_OFFLINE forbids to fetch it")
    if not hub.offline():
        try:
            listing = hub.look_up(repo, revision)
        except hub.Unreachable as error:
            if folder is None:
                raise
            if note:
                note(f"{error}; using the copy of {repo} in the cache, commit {folder.name}")
        else:
            try:
                listing.pick(choose)
            except EdgeRuntimeError as error:
                raise EdgeRuntimeError(f"{repo}: {error}") from None
            return _Part(choose, listing=listing, repo=repo, model=model)
    return _Part(choose, folder, repo=repo, model=model)


def _chooser(model: ModelRecipe | None, kind: str) -> Choose:
    if model and model.kind == "gguf":
        return lambda present: _gguf_files(model, present)
    return lambda present: checkpoint_files(present, drafter=kind == "drafter")


def _gguf_files(model: ModelRecipe, present: Collection[str]) -> list[str]:
    files = [file for file in (model.file, model.projector) if file]
    if missing := [file for file in files if file not in present]:
        others = ", ".join(sorted(file for file in present if file.endswith(".gguf"))) or "none"
        raise EdgeRuntimeError(f"it has no {missing[0]} (its GGUF files: {others})")
    return files


def _room(part: _Part) -> tuple[Path, int, str]:
    assert part.listing  # noqa: S101  only what is to be fetched is asked for
    return hub.cache_folder(), hub.missing_bytes(part.listing, part.choose), part.repo


def _bundle_bytes(part: _Part, recipe: str | None) -> int:
    """An estimate; `recipe` None stands for that of the model's recipe or int4."""
    if part.model and recipe in {None, part.model.recipe}:
        return part.model.bundle_bytes
    weights = sum(file.size for file in part.listing.pick(part.choose)) if part.listing else 0
    return int(weights * _BUNDLE_SHARE.get(recipe or "int4", _FOUR_BIT_SHARE))


def _described(part: _Part, folder: Path, key: str, revision_key: str) -> dict[str, str]:
    return {key: part.repo, revision_key: folder.name} if part.repo else {key: folder.resolve().name}
