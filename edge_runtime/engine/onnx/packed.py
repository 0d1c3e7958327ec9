"""Weights as this machine's kernels want them, in a file that is mapped: memory that the system may take back.

ONNX Runtime rearranges ("packs") quantised matrices for its kernels when it loads a graph, and keeps the result in
memory of its own. It can also write packed matrices into a graph's data file and map them from there. That form fits
one version of ONNX Runtime and one kind of processor, so it is made on the device at the first load and kept in the
cache. Matrices are packed one at a time, each in a graph of its own, so that making the file takes no more memory than
using it.

The original matrices are in the file as well. ONNX Runtime packs them at each load and knows the packed ones by what
comes out, so a load takes as much work as ever and the memory of the largest matrix for a moment.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.engine.onnx import packing
from edge_runtime.engine.onnx.channels import write_channels
from edge_runtime.engine.onnx.kv_graph import read_graph, set_kv_type
from edge_runtime.engine.onnx.pages import Pages, passing
from edge_runtime.engine.onnx.prefill_graph import prefill_bytes, prefill_graph
from edge_runtime.engine.onnx.session import SPIN_US, open_session
from edge_runtime.machine import readable

if TYPE_CHECKING:
    from edge_runtime.bundle.checksums import Checksums
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.engine.onnx.kv_cache import KVType
    from edge_runtime.gemma.geometry import TextGeometry

log = logging.getLogger(__name__)

WORTH = 64 << 20
"""Bytes of a decoder's weights from which on it is worth the disk."""

_FORM = 4  # of the files; another form is made anew
_GRAPHS = (names.DECODER, *names.TOWERS)
_SPARE = 256 << 20  # bytes of disk that are left free
_ABOUT = "packed.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_BLOCK = 1 << 20


class PackedGraphs:
    """The packed graphs of one bundle on this machine.

    Attributes:
        prefill: Bytes of the matrices of `names.PREFILL`; 0: there is no use or no room for that graph.
    """

    def __init__(self, bundle: Path, place: Path, text: TextGeometry, prefill: int) -> None:
        self._bundle, self._place, self._text, self.prefill = bundle, place, text, prefill

    @classmethod
    def of(cls, bundle: Path, manifest: Manifest, cache: Path | None) -> PackedGraphs | None:
        """Those of a bundle; None if there is no cache, no room in it, or it is not worth it."""
        sizes = {graph: packing.packed_size(manifest, graph) for graph in _GRAPHS if graph in manifest.files}
        data = manifest.files.get(names.data_file(names.DECODER))
        if cache is None or data is None or data.size < WORTH:
            return None
        place = cache / "packed" / f"{manifest.name}-{_identity(manifest)}"
        missing = sum(size for graph, size in sizes.items() if not (place / graph).is_dir())
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(place.parent).free - _SPARE
        except OSError as error:
            log.warning("weights are packed into memory: %s: %s", place.parent, error.strerror or error)
            return None
        if missing > max(0, free):
            log.warning(
                "weights are packed into memory: %s has %s to spare, a file of them takes %s",
                place.parent,
                readable(max(0, free)),
                readable(missing),
            )
            return None
        prefill = prefill_bytes(manifest)
        if not (place / names.PREFILL).is_dir() and missing + prefill > free:
            log.warning("prompts are read slowly: %s has no room for %s more", place.parent, readable(prefill))
            prefill = 0
        return cls(bundle, place, manifest.geometry.text, prefill)

    def open(
        self,
        graph: str,
        threads: int,
        checksums: Checksums | None,
        kv_type: KVType = "fp32",
        spin_us: int = SPIN_US,
    ) -> Any:
        """The session of a graph, packed first if it is not yet or is damaged; None if that is impossible.

        Raises:
            EdgeRuntimeError: The bundle is damaged.
        """
        folder = self._place / graph
        for _ in range(2):
            try:
                if not folder.is_dir():
                    self._make(graph, checksums)
                if _sound(folder):
                    path = self._with_kv_type(folder, graph, kv_type)
                    many = graph != names.DECODER
                    # While a packed graph is loaded all of its file is looked at, half of it never again.
                    with passing(folder / names.data_file(graph)):
                        return open_session(path, threads, packed=True, pack=not many, arena=many, spin_us=spin_us)
                log.warning("%s is damaged: it is made anew", folder)
                shutil.rmtree(folder)
            except OSError as error:
                log.warning("weights are packed into memory: %s: %s", folder, error.strerror or error)
                return None
        return None

    def pages(self, graph: str) -> Pages:
        """Pages of an open graph's data file; not to be used once it is closed."""
        return Pages(self._place / graph / names.data_file(graph))

    def own_bytes(self) -> int:
        """Where in the open decoder's data file the matrices of layers that share keys begin; 0: nowhere."""
        try:
            about = json.loads((self._place / names.DECODER / _ABOUT).read_text(encoding="utf-8"))
            return int(about["shared"] or 0)
        except (OSError, ValueError, KeyError, TypeError):  # it is packed into memory
            return 0

    def _make(self, graph: str, checksums: Checksums | None) -> None:
        source = names.DECODER if graph == names.PREFILL else graph
        if checksums is not None:
            checksums.check(source, names.data_file(source))
        self._place.mkdir(parents=True, exist_ok=True)
        log.info("packing the weights of %s for this machine, once", graph)
        with tempfile.TemporaryDirectory(prefix=".", dir=self._place) as temporary:
            folder = Path(temporary) / graph
            folder.mkdir()
            shared = None
            if graph == names.DECODER:
                first = f"layers.{self._text.num_own_layers}."
                places = packing.pack(self._bundle, graph, folder)
                shared = next((place for name, place in places.items() if first in name), None)
            else:
                model = read_graph(self._bundle / source)
                if graph == names.PREFILL:
                    prefill_graph(model, self._text)
                write_channels(model, self._bundle, folder / graph)
            digest = _digest(folder / names.data_file(graph))
            about = {"bundle": str(self._bundle.resolve()), "digest": digest, "shared": shared}
            (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
            _mark_sound(folder)
            for path in folder.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            if not (self._place / graph).is_dir():
                folder.rename(self._place / graph)
        self._sweep()

    def _with_kv_type(self, folder: Path, graph: str, kv_type: KVType) -> Path:
        path = folder / graph
        if kv_type == "fp32" or graph not in {names.DECODER, names.PREFILL}:
            return path
        other = path.with_suffix(f".{kv_type}.onnx")
        if not other.is_file():
            model = read_graph(path)
            set_kv_type(model, self._text, kv_type, folder)
            temporary = other.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(model.SerializeToString())
            temporary.replace(other)
        return other

    def _sweep(self) -> None:
        """Removes what was packed of bundles that are gone, and of this one by other versions."""
        ours = str(self._bundle.resolve())
        for about in self._place.parent.glob(f"*/*/{_ABOUT}"):
            try:
                bundle = json.loads(about.read_text(encoding="utf-8"))["bundle"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if about.parents[1] != self._place and (bundle == ours or not Path(bundle).is_dir()):
                shutil.rmtree(about.parents[1], ignore_errors=True)


def _identity(manifest: Manifest) -> str:
    """Changes with the bundle's weights, ONNX Runtime, the processor and the form of the files."""
    import onnxruntime  # noqa: PLC0415

    files = {name: entry.sha256 for name, entry in manifest.files.items() if name.startswith(_GRAPHS)}
    parts = [files, onnxruntime.__version__, _processor(), _FORM]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def _processor() -> list[str]:
    """What kernels are chosen by."""
    found = {platform.machine()}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features", "model name", "CPU part", "CPU implementer")):
                found.add(line)
    except OSError:
        pass
    return sorted(found)


def _sound(folder: Path) -> bool:
    """Whether the data is what was written; read once after each boot, and again when the file is another."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        graph = folder.name
        if not (folder / graph).is_file():
            return False
        if (folder / "sound").is_file() and (folder / "sound").read_text(encoding="utf-8") == _state(folder):
            return True
        if _digest(folder / names.data_file(graph)) != about["digest"]:
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    _mark_sound(folder)
    return True


def _mark_sound(folder: Path) -> None:
    (folder / "sound").write_text(_state(folder), encoding="utf-8")


def _state(folder: Path) -> str:
    """Which file it is, and since when the machine runs."""
    there = (folder / names.data_file(folder.name)).stat()
    graph = (folder / folder.name).read_bytes()
    boot = _BOOT.read_text(encoding="ascii").strip() if _BOOT.is_file() else ""
    content = hashlib.blake2b(graph, digest_size=16).hexdigest()
    return json.dumps([boot, there.st_size, there.st_mtime_ns, content])


def _digest(path: Path) -> str:
    """Of a file: the sums of its blocks' 64-bit words, digested: quicker than a CRC, and finds what disks do."""
    digest = hashlib.blake2b(digest_size=16)
    block = np.zeros(_BLOCK // 8, np.uint64)
    view = block.data.cast("B")
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            view[count:] = bytes(_BLOCK - count)
            digest.update(int(block.sum(dtype=np.uint64)).to_bytes(8, "little"))
    return digest.hexdigest()
