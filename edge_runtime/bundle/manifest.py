"""bundle.json: what a bundle is, which files belong to it and what they must contain."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.bundle import names
from edge_runtime.bundle.tables import TableSpec
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.geometry import Geometry

FORMAT = 1


@dataclass(frozen=True)
class FileEntry:
    """What a file must be."""

    size: int
    """Bytes."""
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Measures a file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path.stat().st_size, digest)


@dataclass(frozen=True)
class Manifest:
    """The contents of bundle.json."""

    name: str
    recipe: str
    geometry: Geometry
    source: dict[str, Any]
    """Where the bundle came from: checkpoint folder name and the version that exported it."""
    tables: dict[str, TableSpec]
    files: dict[str, FileEntry] = field(default_factory=dict)
    format: int = FORMAT


def is_bundle(folder: Path) -> bool:
    """Whether `folder` has a manifest."""
    return (folder / names.MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Reads `folder`/bundle.json.

    Raises:
        EdgeRuntimeError: there is none, it is damaged, or a newer version wrote it.
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
        raise EdgeRuntimeError(f"{path} has format {version!r}, this version of edge-runtime reads format {FORMAT}")
    try:
        return Manifest(
            name=str(data["name"]),
            recipe=str(data["recipe"]),
            geometry=Geometry.from_json(data["geometry"]),
            source=dict(data["source"]),
            tables={name: TableSpec.from_json(spec) for name, spec in data["tables"].items()},
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
        "files": {name: dataclasses.asdict(entry) for name, entry in sorted(manifest.files.items())},
    }
    temporary = folder / f".{names.MANIFEST}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / names.MANIFEST)


def verify(folder: Path) -> list[str]:
    """Everything that is wrong with a bundle, one line each, naming the file; empty if it is sound."""
    try:
        manifest = read_manifest(folder)
    except EdgeRuntimeError as error:
        return [str(error)]
    problems = []
    for name, entry in manifest.files.items():
        if Path(name).name != name:
            problems.append(f"{names.MANIFEST} lists {name!r}, which is no plain file name")
        elif problem := _check_file(folder / name, entry):
            problems.append(problem)
    problems += _check_tables(manifest)
    problems += [f"{name} is not listed in {names.MANIFEST}" for name in _expected(manifest) - manifest.files.keys()]
    return problems or _check_geometry(folder, manifest)


def _check_file(path: Path, entry: FileEntry) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry.size:
            return f"{path.name} has {size} bytes instead of {entry.size}"
        if FileEntry.of(path) != entry:
            return f"{path.name} is damaged: its SHA-256 is not the one in {names.MANIFEST}"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    return None


def _check_tables(manifest: Manifest) -> list[str]:
    return [
        f"{name} does not have the {spec.rows} rows of {spec.row_bytes} bytes that {names.MANIFEST} says"
        for name, spec in manifest.tables.items()
        if name in manifest.files and manifest.files[name].size != spec.rows * spec.row_bytes
    ]


def _expected(manifest: Manifest) -> set[str]:
    """The files without which the model of this geometry cannot run."""
    geometry = manifest.geometry
    expected = {names.CONFIG, names.DECODER, names.data_file(names.DECODER), names.EMBED_TABLE}
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
