"""Writes a graph whose quantised matrices lie packed in its data file, one matrix at a time."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle import names
from edge_runtime.engine.onnx.data_file import DataFile
from edge_runtime.engine.onnx.kv_graph import read_graph, refill
from edge_runtime.engine.onnx.memory import packed_bytes
from edge_runtime.engine.onnx.session import session_options
from edge_runtime.engine.onnx.slices import MATMUL, chain, slice_matrices

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest


def packed_size(manifest: Manifest, graph: str) -> int:
    """About the bytes that `pack` writes."""
    return packed_bytes(manifest, graph) + manifest.files[names.data_file(graph)].size


def pack(bundle: Path, graph: str, folder: Path) -> dict[str, int]:
    """Writes graph and data file into `folder`.

    Returns:
        Where in the data file what belongs to each matrix begins, by the matrix's name; they lie in the graph's order.
    """
    model = read_graph(bundle / graph)
    slice_matrices(model.graph)
    with (folder / names.data_file(graph)).open("wb") as file, tempfile.TemporaryDirectory(dir=folder) as work:
        places = _Packer(bundle, model, DataFile(file, bundle), Path(work)).run()
    (folder / graph).write_bytes(model.SerializeToString())
    return places


@dataclass
class _Packer:
    bundle: Path
    model: Any
    data: DataFile
    work: Path

    def run(self) -> dict[str, int]:
        """Packs all matrices and copies the rest; see `pack`."""
        graph = self.model.graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {output: node for node in graph.node for output in node.output}
        done: dict[tuple[str, str], None] = {}
        gone: set[str] = set()
        places: dict[str, int] = {}
        for node in [node for node in graph.node if node.op_type == MATMUL]:
            pair = (node.input[1], node.input[2])
            if pair not in done and node.input[1] in self._initializers:
                places[node.input[1]] = self.data.size
                gone |= self._pack(node)
                done[pair] = None
        for tensor in graph.initializer:
            if tensor.external_data and tensor.name not in gone and not DataFile.has(tensor):
                self.data.copy(tensor)
        kept = [node for node in graph.node if not (node.output and node.output[0] in gone)]
        tensors = [tensor for tensor in self._initializers.values() if tensor.name not in gone or DataFile.has(tensor)]
        refill(graph.node, kept)
        refill(graph.initializer, tensors)
        return places

    def _pack(self, node: Any) -> set[str]:
        """Packs the matrix of one node; the names of the values that its scales, now in float32, made needless."""
        weight, scales = node.input[1], node.input[2]
        nodes = chain(scales, self._makers)
        saved, data = self._save(node, nodes)
        by_name = {tensor.name: tensor for tensor in saved.graph.initializer}
        # Whatever the optimiser called them: they are what the node takes now.
        (matmul,) = (node for node in saved.graph.node if node.op_type == MATMUL)
        self._take(self._initializers[weight], by_name[matmul.input[1]], data)
        if not nodes:
            if not DataFile.has(self._initializers[scales]):
                self._take(self._initializers[scales], by_name[matmul.input[2]], data)
            return set()
        if scales not in self._initializers:
            tensor = type(by_name[matmul.input[2]]).FromString(by_name[matmul.input[2]].SerializeToString())
            tensor.name = scales
            self._initializers[scales] = tensor
            self._take(tensor, by_name[matmul.input[2]], data)
        made = {output for maker in nodes for output in maker.output}
        used = {name for maker in nodes for name in maker.input}
        return made | used

    def _save(self, node: Any, nodes: list[Any]) -> tuple[Any, Path]:
        """A graph of one matrix as ONNX Runtime saves it, and its data."""
        import onnxruntime as ort  # noqa: PLC0415
        from onnx import TensorProto, helper  # noqa: PLC0415

        width = next(attribute.i for attribute in node.attribute if attribute.name == "K")
        names_used = {name for part in (*nodes, node) for name in part.input}
        tensors = [self._initializers[name] for name in sorted(names_used) if name in self._initializers]
        alone = type(node).FromString(node.SerializeToString())
        alone.input[0], alone.output[0] = "x", "y"
        graph = helper.make_graph(
            [*nodes, alone],
            "one",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", width])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            tensors,
        )
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        path, data = self.work / "one.onnx", self.work / "one.data"
        for old in (path, data):
            old.unlink(missing_ok=True)
        options = session_options(1)
        options.optimized_model_filepath = str(path)
        for key, value in {
            "model_external_initializers_file_folder_path": str(self.bundle),
            "optimized_model_external_initializers_file_name": data.name,
            "optimized_model_external_initializers_min_size_in_bytes": "0",
            "save_external_prepacked_constant_initializers": "1",
        }.items():
            options.add_session_config_entry(f"session.{key}", value)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return read_graph(path), data

    def _take(self, tensor: Any, saved: Any, data: Path) -> None:
        """Makes `tensor` what `saved` is, with all that lies in the data file for it."""
        entries = {entry.key: entry.value for entry in saved.external_data}
        if not entries:  # a small one, inside the graph
            name = tensor.name
            tensor.CopyFrom(saved)
            tensor.name = name
            return
        place = [self.data.append(data, int(entries["offset"]), int(entries["length"]))]
        packed = {}
        for key, value in entries.items():
            if key.startswith("prepacked"):
                label, _, blocks = value.rpartition("|")
                found = []
                for block in blocks.split("|"):
                    offset, length, flags = block.split(";")
                    found.append(f"{self.data.append(data, int(offset), int(length))};{length};{flags}")
                packed[key] = "|".join([label, *found])
        self.data.describe(tensor, place[0], int(entries["length"]), packed)
