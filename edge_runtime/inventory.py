"""What models there are on this box, and how much memory each would take."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import is_bundle, read_manifest
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edge_runtime.bundle.manifest import Manifest

_CONTEXT = 4096
_CHUNK = 256
"""Tokens that sliding layers hold beyond their window."""
_PROGRAM_BYTES = 80_000_000
"""Measured with the built-in model on x86-64: Python, ONNX Runtime and everything else that is not the model."""
_TOKENIZER_FACTOR = 9
"""Measured: a tokenizer.json of 262144 entries and 33 MB takes 282 MB."""
_GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_GGUF_STRING = 8
_ARCHITECTURE = "general.architecture"


@dataclass(frozen=True)
class Found:
    """A model on this box."""

    name: str
    path: Path
    kind: str
    """The recipe of a bundle, or "gguf"."""
    size: int
    """Bytes of its files."""
    memory: int
    """Bytes that it takes when it runs, an estimate."""
    source: str = ""
    """Hub id or folder that a bundle was made from."""
    problem: str = ""
    """Why it cannot run."""


def look(folders: Iterable[Path]) -> list[Found]:
    """The bundles and the GGUF files of Gemma 4 in `folders`: in each itself, and one level down."""
    found: dict[Path, Found] = {}
    for path in _candidates(folders):
        real = path.resolve()
        if real in found:
            continue
        if is_bundle(path):
            found[real] = _bundle(path)
        elif path.suffix == ".gguf" and architecture(path) == "gemma4":
            found[real] = _gguf(path)
    return list(found.values())


def memory_needed(manifest: Manifest) -> int:
    """Bytes of memory that a bundle takes when it runs, with all its towers and 4096 tokens; an estimate.

    Graphs are loaded whole; tables are read from disk a row at a time and do not count.
    """
    text = manifest.geometry.text
    sizes = {name: entry.size for name, entry in manifest.files.items()}
    graphs = sum(size for name, size in sizes.items() if name.endswith(names.data_file("")))
    cache = 0
    for layer in range(text.num_own_layers):
        tokens = _CONTEXT if text.is_full(layer) else min(_CONTEXT, text.sliding_window + _CHUNK)
        cache += 2 * 4 * tokens * text.kv_heads[layer] * text.head_dims[layer]  # keys and values, float32
    return graphs + cache + _TOKENIZER_FACTOR * sizes.get(names.TOKENIZER, 0) + _PROGRAM_BYTES


def gguf_folders() -> list[Path]:
    """Where programs that fetch GGUF files put them: the hub's cache and llama.cpp's."""
    from edge_runtime.export.hub import cache_folder  # noqa: PLC0415

    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    llama = Path(os.environ.get("LLAMA_CACHE") or caches / "llama.cpp")
    return [*sorted(cache_folder().glob("models--*/snapshots/*")), llama]


def architecture(path: Path) -> str | None:
    """What a GGUF file says that it is ("gemma4", "clip", ...); None if it is no GGUF or says nothing."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                return None
            _, _, count = struct.unpack("<IQQ", file.read(20))
            for _ in range(count):
                key, value = _text(file), _value(file)
                if key == _ARCHITECTURE:
                    return value
    except (OSError, ValueError, struct.error):
        pass
    return None


def _candidates(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield folder
        try:
            yield from sorted(folder.iterdir())
        except OSError:
            continue  # it does not exist, or is not ours to read


def _bundle(path: Path) -> Found:
    try:
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        manifest = read_manifest(path)
    except (OSError, EdgeRuntimeError) as error:
        return Found(path.name, path, "", 0, 0, problem=str(error))
    source = str(manifest.source.get("checkpoint", ""))
    return Found(path.name, path, manifest.recipe, size, memory_needed(manifest), source)


def _gguf(path: Path) -> Found:
    from edge_runtime.engine.llama.load import needed  # noqa: PLC0415 - where there is a GGUF at all

    size = path.stat().st_size
    try:
        return Found(path.stem, path, "gguf", size, needed(path, _CONTEXT))
    except EdgeRuntimeError as error:
        return Found(path.stem, path, "gguf", size, size, problem=str(error))


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > 1 << 16:
        raise ValueError("no GGUF has such a text among its first values")
    return file.read(length).decode()


def _value(file: BinaryIO) -> str:
    """The next value if it is a text, else "". Lists come after what is looked for: they end the search."""
    (kind,) = struct.unpack("<I", file.read(4))
    if kind == _GGUF_STRING:
        return _text(file)
    if kind not in _GGUF_SCALARS:
        raise ValueError("a list")
    file.read(struct.calcsize(f"<{_GGUF_SCALARS[kind]}"))
    return ""
