"""bundle.json: what a bundle is, which files belong to it and what they must contain.

It holds the SHA-256 of its own other contents, so that a flipped digit in it is found as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle import names
from edge_runtime.bundle.checksums import (
    BLOCK,
    PAGE,
    Checksums,
    FileEntry,
    check_size,
    measure,
    measure_all,
    over_files,
    write_checksums,
)
from edge_runtime.bundle.shared_table import SharedSpec
from edge_runtime.bundle.tables import TableSpec
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_runtime.bundle.checksums import Measured, Tick

FORMAT = 2

_DIGEST = "sha256"


@dataclass(frozen=True)
class Manifest:
    """The contents of bundle.json."""

    name: str
    recipe: str
    geometry: Geometry
    source: dict[str, Any]
    """Where the bundle came from: checkpoint folder name and the version that exported it."""
    tables: dict[str, TableSpec]
    embedding: SharedSpec | None = None
    """Where the token embedding lies in the output head; None: in a table of its own."""
    formats: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Of each graph: its rounded matrices by their format, "bits/block/scales"."""
    files: dict[str, FileEntry] = field(default_factory=dict)
    format: int = FORMAT


def is_bundle(folder: Path) -> bool:
    """Whether `folder` has a manifest."""
    return (folder / names.MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Reads `folder`/bundle.json.

    Raises:
        EdgeRuntimeError: there is none, it is damaged, or another version wrote it.
    """
    path = folder / names.MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EdgeRuntimeError(f"{folder} is no bundle: it has no {names.MANIFEST}") from error
    except NotADirectoryError as error:
        raise EdgeRuntimeError(f"{folder} is no bundle: it is no folder") from error
    except OSError as error:
        raise EdgeRuntimeError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise EdgeRuntimeError(f"{path} is damaged: {error}") from error
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise EdgeRuntimeError(
            f"{path} has format {version!r}, this version of edge-runtime reads format {FORMAT}: export again"
        )
    if data.pop(_DIGEST, None) != digest(data):
        raise EdgeRuntimeError(f"{path} is damaged: its contents are not those it was written with")
    try:
        return Manifest(
            name=str(data["name"]),
            recipe=str(data["recipe"]),
            geometry=Geometry.from_json(data["geometry"]),
            source=dict(data["source"]),
            tables={name: TableSpec.from_json(spec) for name, spec in data["tables"].items()},
            embedding=SharedSpec.from_json(data["embedding"]) if data["embedding"] else None,
            formats=dict(data["formats"]),
            files={name: FileEntry(**entry) for name, entry in data["files"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EdgeRuntimeError(f"{path} is damaged: {error!r}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `folder`/bundle.json, wholly or not at all."""
    data = {
        "format": manifest.format,
        "name": manifest.name,
        "recipe": manifest.recipe,
        "source": manifest.source,
        "geometry": manifest.geometry.to_json(),
        "tables": {name: spec.to_json() for name, spec in manifest.tables.items()},
        "embedding": manifest.embedding.to_json() if manifest.embedding else None,
        "formats": manifest.formats,
        "files": {name: dataclasses.asdict(entry) for name, entry in sorted(manifest.files.items())},
    }
    temporary = folder / f".{names.MANIFEST}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data | {_DIGEST: digest(data)}, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / names.MANIFEST)


def digest(data: dict[str, Any]) -> str:
    """SHA-256 of a manifest's contents, however they are laid out in the file."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def seal(
    folder: Path, manifest: Manifest, measured: Mapping[str, Measured] | None = None, tick: Tick | None = None
) -> Manifest:
    """Finishes a bundle: measures its files, writes their checksums and then the manifest.

    Args:
        folder: With all other files in it.
        manifest: As it shall be, but for `files`.
        measured: Files that were measured while they were written, as `write_table` does; the rest is read here, on all
            cores.
        tick: Told how many bytes were read since it was last called.

    Returns:
        The manifest as written.
    """
    found = dict(measured or {})
    paths = [path for path in folder.iterdir() if path.name not in {names.MANIFEST, names.CHECKSUMS, *found}]
    found |= measure_all(folder, {path.name: PAGE if path.name in manifest.tables else BLOCK for path in paths}, tick)
    files = {name: file.entry for name, file in sorted(found.items())}
    manifest = dataclasses.replace(manifest, files=files | {names.CHECKSUMS: write_checksums(folder, found)})
    write_manifest(folder, manifest)
    return manifest


def verify(folder: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Everything that is wrong with a bundle, one line each, naming the file; empty if it is sound.

    Every byte is read, on all cores, in pieces of 1 MiB.

    Args:
        folder: The bundle.
        progress: Told how many bytes were read so far, and how many there are.
    """
    try:
        manifest = read_manifest(folder)
    except EdgeRuntimeError as error:
        return [str(error)]
    checksums, unreadable = None, None
    try:
        checksums = Checksums.read(folder, manifest.files)
    except EdgeRuntimeError as error:
        unreadable = str(error)
    sizes = {name: entry.size for name, entry in manifest.files.items()}
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, sum(sizes.values()))

    found = over_files(sizes, lambda name, told: _check_file(folder, name, manifest.files[name], checksums, told), tick)
    problems = [problem for problem in found.values() if problem]
    problems += _check_tables(manifest)
    problems += [f"{name} is not listed in {names.MANIFEST}" for name in _expected(manifest) - manifest.files.keys()]
    if unreadable and not problems:
        problems.append(unreadable)
    return problems or _check_geometry(folder, manifest)


def _check_file(folder: Path, name: str, entry: FileEntry, checksums: Checksums | None, tick: Tick) -> str | None:
    if problem := check_size(folder, name, entry):
        return problem
    try:
        found = measure(folder / name, entry.block, tick)
    except OSError as error:
        return f"{name}: {error.strerror}"
    if found.entry == entry:
        return None
    place = checksums.damage(name, found.crcs) if checksums else None
    return place or f"{name} is damaged: its SHA-256 is not the one in {names.MANIFEST}"


def _check_tables(manifest: Manifest) -> list[str]:
    shared, files = manifest.embedding, manifest.files
    if shared and (shared.file not in files or files[shared.file].size < shared.end):
        return [f"{shared.file} does not have the token embedding that {names.MANIFEST} says"]
    return [
        f"{name} does not have the {spec.rows} rows, {spec.size} bytes in all, that {names.MANIFEST} says"
        for name, spec in manifest.tables.items()
        if name in manifest.files and manifest.files[name].size != spec.size
    ]


def _expected(manifest: Manifest) -> set[str]:
    """The files without which the model of this geometry cannot run."""
    geometry = manifest.geometry
    expected = {names.CHECKSUMS, names.CONFIG, names.DECODER, names.data_file(names.DECODER)}
    if manifest.embedding is None:
        expected.add(names.EMBED_TABLE)
    if geometry.text.ple_dim:
        expected.add(names.PLE_TABLE)
    for present, graph in ((geometry.vision, names.VISION), (geometry.audio, names.AUDIO)):
        if present:
            expected |= {graph, names.data_file(graph)}
    if geometry.assistant:
        expected |= {names.DRAFTER, names.data_file(names.DRAFTER)}
    return expected


def _check_geometry(folder: Path, manifest: Manifest) -> list[str]:
    try:
        config = json.loads((folder / names.CONFIG).read_text(encoding="utf-8"))
        geometry = Geometry.from_config(config)
    except (OSError, ValueError, EdgeRuntimeError) as error:
        return [f"{names.CONFIG}: {error}"]
    if geometry != dataclasses.replace(manifest.geometry, assistant=None):
        return [f"{names.MANIFEST}: its geometry is not that of {names.CONFIG}"]
    return []
