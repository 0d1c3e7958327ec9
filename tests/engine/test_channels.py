"""Products with one scale for each channel: what they compute, and prompts that are read with them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx import channels
from edge_runtime.engine.onnx import packed as packed_module
from edge_runtime.engine.onnx.channels import Blocks, round_channels, write_channels
from edge_runtime.engine.onnx.decoder import MANY, Decoder
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.onnx.kv_graph import read_graph
from edge_runtime.engine.onnx.memory import plan_and_check
from edge_runtime.engine.onnx.packed import PackedGraphs
from edge_runtime.engine.onnx.packing import packed_size
from edge_runtime.engine.onnx.prefill_graph import prefill_bytes
from edge_runtime.engine.protocol import Request
from edge_runtime.export import export_checkpoint
from edge_runtime.export.quant import Format, Grid, Rounded, dequantize, quantize, settle
from tests.engine import runs
from tests.engine.test_golden import GOLDEN, _with_media

if TYPE_CHECKING:
    from numpy.typing import NDArray

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channels") / "int4"
    export_checkpoint(checkpoint, folder, recipe="int4")
    return folder


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "WORTH", 0)


def decoder(bundle: Path, cache: Path, kv_type: Any = "fp32") -> Decoder:
    manifest = read_manifest(bundle)
    packed = PackedGraphs.of(bundle, manifest, cache)
    return Decoder(bundle, manifest, context=512, threads=1, packed=packed, kv_type=kv_type, prefill=True)


def data_of(cache: Path) -> Path:
    (path,) = cache.glob(f"packed/*/{names.PREFILL}/{names.data_file(names.PREFILL)}")
    return path


def resident(path: Path) -> int:
    """Kilobytes of a mapped file that this process has."""
    count, ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match("[0-9a-f]+-", line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            count += int(line.split()[1])
    return count


@pytest.mark.parametrize(("bits", "block"), [(2, 32), (4, 32), (4, 128), (8, 64)])
@pytest.mark.parametrize("top", [63, 127])
def test_a_matrix_is_rounded_anew(bits: int, block: int, top: int):
    rounded = quantize(RNG.standard_normal((300, 256), np.float32), Format(bits, block))
    weights = dequantize(rounded)
    matrix = Blocks(rounded.packed, rounded.steps(), bits)
    assert np.array_equal(matrix.rows(slice(0, 300)), weights)
    levels, scales, lost = round_channels(matrix.rows, matrix.shape, top)
    error = levels * scales[:, None] - weights
    assert np.abs(levels).max() == top
    assert (np.abs(error) <= scales[:, None] * 0.5001).all()
    assert lost == pytest.approx((error**2).sum() / (weights**2).sum(), rel=1e-3)


def one_matrix(folder: Path, rounded: Rounded, shape: tuple[int, int], step: Any = None) -> Any:
    """A graph that multiplies with it, y = x W^T, its weights in `folder`; activations rounded to steps, if given."""
    rows, width = shape
    data = folder / "given.data"
    data.write_bytes(rounded.packed.tobytes() + rounded.steps().tobytes())
    tensors, offset = [], 0
    for name, values in (("w", rounded.packed), ("s", rounded.steps())):
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(values.dtype), dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": data.name, "offset": offset, "length": values.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        offset += values.nbytes
    sizes: dict[str, Any] = {"N": rows, "K": width, "bits": 4, "block_size": 32, "accuracy_level": 4}
    nodes, taken = [], "x"
    if step is not None:
        tensors += [
            numpy_helper.from_array(np.array(value), name) for name, value in (("e", step), ("z", np.uint8(128)))
        ]
        nodes.append(helper.make_node("QuantizeLinear", ["x", "e", "z"], ["levels"]))
        nodes.append(helper.make_node("DequantizeLinear", ["levels", "e", "z"], ["on_grid"]))
        taken = "on_grid"
    nodes.append(helper.make_node("MatMulNBits", [taken, "w", "s"], ["y"], domain="com.microsoft", **sizes))
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph(nodes, "one", shapes[:1], shapes[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def product(
    tmp_path: Path, weights: NDArray[np.float32], x: NDArray[np.float32]
) -> tuple[NDArray[np.float32], list[str]]:
    """What the products of a graph with one matrix give, and the matrices that they take."""
    rounded = quantize(weights, Format(4, 32))
    model = one_matrix(tmp_path, rounded, weights.shape)
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "one.onnx"
    write_channels(model, tmp_path, path)
    made = [node.input[1] for node in read_graph(path).graph.node if node.op_type == "MatMulIntegerToFloat"]
    found = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    expected = x @ dequantize(rounded).T
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    return found, made


def test_products_are_right_and_nothing_overflows(tmp_path: Path):
    # All of one sign: sums of two products are as large as they get.
    product(tmp_path, np.abs(RNG.standard_normal((64, 96), np.float32)) + 1, np.ones((40, 96), np.float32))


def test_a_token_of_zeros_gives_zeros(tmp_path: Path):
    x = RNG.standard_normal((3, 96), np.float32)
    x[1] = 0
    found, _ = product(tmp_path, RNG.standard_normal((64, 96), np.float32), x)
    assert not found[1].any()
    assert np.isfinite(found).all()


def test_what_seven_bits_would_lose_has_eight(tmp_path: Path):
    kinds = []
    for number, outlier in enumerate((1, 8, 60)):
        (tmp_path / str(number)).mkdir()
        weights = RNG.standard_normal((64, 1024), np.float32)
        weights[:, 7] *= outlier
        _, matrices = product(tmp_path / str(number), weights, RNG.standard_normal((40, 1024), np.float32))
        model = onnx.load(str(tmp_path / str(number) / "out" / "one.onnx"))
        kinds += [[tensor.data_type for tensor in model.graph.initializer if tensor.name in matrices]]
    eight = TensorProto.UINT8 if channels.saturates() else TensorProto.INT8
    assert kinds == [[TensorProto.INT8], [eight], [eight, TensorProto.INT8]]


@pytest.mark.parametrize("kv_type", ["fp32", "fp16", "int8"])
def test_prompts_are_read_nearly_as_before(bundle: Path, tmp_path: Path, kv_type: Any):
    one = decoder(bundle, tmp_path, kv_type)
    ids = RNG.integers(300, 2000, 300)
    found = []
    for graph in (one._prefill, None):
        one._prefill = graph
        one.begin()
        for first, end in one.cuts(300, 128):
            logits = one.step(ids[first:end], one.embed(ids[first:end]), keep=2 * (end == 300))
        found.append(logits.copy())
    one.close()
    assert not np.array_equal(found[0], found[1])
    assert np.linalg.norm(found[0] - found[1]) < 0.1 * np.linalg.norm(found[1])


def test_few_tokens_go_the_other_way(bundle: Path, tmp_path: Path):
    one = decoder(bundle, tmp_path)
    read: list[int] = []
    prefill = one._prefill
    assert prefill is not None

    def run(feed: Any) -> None:
        read.append(feed["inputs_embeds"].shape[1])
        prefill.run(feed)

    one._prefill = SimpleNamespace(run=run)  # type: ignore[assignment]
    ids = RNG.integers(300, 2000, MANY + 4)
    embeddings = one.embed(ids)
    one.step(ids, embeddings, 5)
    assert not read
    one.step(ids, embeddings, 4)
    one.step(ids, embeddings, 0)
    assert read == [MANY, MANY + 4]
    assert one.cache.total == 3 * (MANY + 4)
    # Images that must stay whole are not cut.
    one._images = [(one.cache.total + 4, one.cache.total + MANY + 2)]
    one.step(ids, embeddings, 4)
    assert len(read) == 2
    one._prefill = prefill
    one.close()


def test_pages_go_when_a_prompt_is_read(bundle: Path, tmp_path: Path):
    one = decoder(bundle, tmp_path)
    ids = RNG.integers(300, 2000, 100)
    assert resident(data_of(tmp_path)) == 0
    one.step(ids, one.embed(ids), 0)
    assert resident(data_of(tmp_path)) > 1000
    one.step(ids, one.embed(ids))
    assert resident(data_of(tmp_path)) == 0
    one.close()


def test_the_same_answers(bundle: Path, tmp_path: Path):
    recorded = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["cases"]
    kinds = ("text", "image", "audio", "tools")
    asked = [case for kind in kinds for case in [case for case in recorded if case["kind"] == kind][:4]]
    answers = []
    for cache in (None, tmp_path):
        engine = OnnxEngine(bundle, threads=1, cache=cache)
        assert (engine.memory.prefill > 0) == (cache is not None)
        requests = [Request([_with_media(turn) for turn in case["messages"]], tools=case["tools"]) for case in asked]
        answers.append([runs.greedy(engine, engine.prepare(request)) for request in requests])
        engine.close()
    same = sum(one == other for one, other in zip(*answers, strict=True))
    assert same >= len(asked) - 1  # two ways to round


def test_of_the_decoder_only_what_prompts_do_without_stays(bundle: Path, tmp_path: Path):
    one = decoder(bundle, tmp_path)
    (path,) = tmp_path.glob(f"packed/*/{names.DECODER}/{names.data_file(names.DECODER)}")
    own = one._core.own_bytes
    assert 0 < own < path.stat().st_size
    ids = RNG.integers(300, 2000, 100)
    one.step(ids, one.embed(ids))
    everything = resident(path)
    one.step(ids, one.embed(ids), 0)
    assert everything - own // 1024 - 64 <= resident(path) < everything
    other = one.another()  # whose turn may be next
    one.step(ids[:1], one.embed(ids[:1]))
    everything = resident(path)
    one.step(ids, one.embed(ids), 0)
    assert resident(path) == everything
    other.close()


def test_what_was_trained_with_one_scale_a_channel_is_multiplied_exactly(tmp_path: Path):
    """Levels and steps, of weights and of activations, are taken as they are."""
    levels = RNG.integers(-8, 8, (64, 96)).astype(np.int8)
    steps = RNG.random((64, 1), np.float32) + np.float32(0.5)
    rounded = settle(Grid(levels, np.repeat(steps, 3, axis=1)), Format(4, 32))
    model = one_matrix(tmp_path, rounded, levels.shape, step=np.float32(0.25))
    (tmp_path / "out").mkdir()
    write_channels(model, tmp_path, tmp_path / "out" / "one.onnx")
    kinds = [node.op_type for node in read_graph(tmp_path / "out" / "one.onnx").graph.node]
    assert kinds == ["QuantizeLinear", "MatMulIntegerToFloat", "Mul"]
    x = RNG.normal(0, 12, (40, 96)).astype(np.float32)
    on_grid = np.clip(np.rint(x * 4), -128, 127) / 4
    assert np.abs(on_grid).max() == 32
    session = ort.InferenceSession(str(tmp_path / "out" / "one.onnx"), providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {"x": x})[0], on_grid @ (levels * steps).T, rtol=1e-5, atol=1e-3)


def test_damaged_it_is_made_anew(bundle: Path, tmp_path: Path):
    decoder(bundle, tmp_path).close()
    data = data_of(tmp_path)
    content = bytearray(data.read_bytes())
    whole = bytes(content)
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    decoder(bundle, tmp_path).close()
    assert data.read_bytes() == whole


def test_its_size_is_known_before(bundle: Path, fp32_bundle: Path, tmp_path: Path):
    decoder(bundle, tmp_path).close()
    announced = prefill_bytes(read_manifest(bundle))
    assert data_of(tmp_path).stat().st_size <= announced * 1.1  # what is no matrix is as much as the decoder's own
    assert prefill_bytes(read_manifest(fp32_bundle)) == 0


def test_only_where_there_is_room(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any):
    manifest = read_manifest(bundle)
    needed = prefill_bytes(manifest)

    def planned(budget: int) -> Any:
        return plan_and_check(
            manifest, context=1024, kv_type="fp32", sessions=1, mapped=True, budget=budget, prefill=needed
        )

    whole = planned(1 << 40)
    assert whole.prefill == needed
    assert any(line.startswith("prefill: ") for line in whole.lines())
    assert planned(whole.total).prefill == needed
    less = planned(whole.total - 1)
    assert less.prefill == 0
    assert less.prefix_cache == whole.prefix_cache
    assert less.anonymous == whole.anonymous

    packed = PackedGraphs.of(bundle, manifest, tmp_path)
    assert packed is not None
    monkeypatch.setattr(packed_module, "_SPARE", 0)
    decoder_size = sum(packed_size(manifest, graph) for graph in packed_module._GRAPHS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=decoder_size + 100))
    packed = PackedGraphs.of(bundle, manifest, tmp_path)
    assert packed is not None
    assert packed.prefill == 0
    assert "prompts are read slowly" in caplog.text


def test_an_answer_that_is_listened_for(bundle: Path, tmp_path: Path):
    engine = OnnxEngine(bundle, threads=1, cache=tmp_path)
    request = Request([{"role": "user", "content": "Hello"}], max_tokens=3)
    ready = engine.prepare(request).ready
    engine.read_ahead(ready, len(ready.keys) - 1)
    assert runs.greedy(engine, engine.prepare(request))
    engine.close()
