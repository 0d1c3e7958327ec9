from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest

from edge_runtime.export.graph import FLOAT, Graph
from edge_runtime.export.matrix import Rounding
from edge_runtime.export.parallel import Pace
from edge_runtime.export.quant import BLOCK, FP32, Format, Grid, dequantize, extremes, quantize
from tests.export.stored import rounded_matrices

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class InMemory:
    """A matrix that is there."""

    name = "m"
    native = None
    rounding = Rounding()

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values
        self.shape: tuple[int, int] = (len(values), values.shape[1])

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.values[start:stop]

    def grid(self, start: int, stop: int) -> Grid:
        raise NotImplementedError


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_levels_scales_and_packing_by_hand() -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, :4] = [8.0, -7.0, 4.0, -3.0]
    rounded = quantize(weight, Format(4))
    # The element of largest magnitude, 8, becomes level -8: scale -1.
    assert rounded.scales.tolist() == [[-1.0]]
    assert rounded.packed.shape == (1, 1, 16)
    assert rounded.packed[0, 0, 0] == 0 | (15 << 4)
    assert rounded.packed[0, 0, 1] == 4 | (11 << 4)
    assert dequantize(rounded)[0, :4].tolist() == [8.0, -7.0, 4.0, -3.0]


def test_two_bits_by_hand() -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, :5] = [-2.0, -1.0, 0.0, 1.0, 1.0]
    rounded = quantize(weight, Format(2))
    assert rounded.scales.tolist() == [[1.0]]
    assert rounded.packed[0, 0, 0] == 0 | (1 << 2) | (2 << 4) | (3 << 6)
    assert dequantize(rounded)[0, :5].tolist() == [-2.0, -1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("scales", ["f32", "f16", "i8"])
def test_zeros_stay_zeros(scales: Any) -> None:
    rounded = quantize(np.zeros((2, 64), np.float32), Format(4, 32, scales))
    assert not rounded.steps().any()
    assert (rounded.packed == 0x88).all()
    assert not dequantize(rounded).any()


@pytest.mark.parametrize("scales", ["f32", "f16", "i8"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_error_is_within_half_a_step_of_the_scale_as_stored(bits: int, scales: Any) -> None:
    weight = normal(40, 96)
    rounded = quantize(weight, Format(bits, BLOCK, scales))
    steps = np.repeat(rounded.steps(), BLOCK, 1)
    error = np.abs(dequantize(rounded) - weight)
    # The highest level is one short of the lowest, and a scale that is stored smaller takes from both.
    levels = weight / steps
    inside = (levels > -(1 << (bits - 1)) - 0.5) & (levels < (1 << (bits - 1)) - 0.5)
    assert (error[inside] <= np.abs(steps)[inside] * 0.5001).all()
    assert inside.mean() > (0.85 if bits == 2 else 0.97)


@pytest.mark.parametrize(("bits", "least"), [(2, 0.05), (4, 0.04)])
def test_scales_that_are_searched_for_err_less_than_those_of_the_extreme(bits: int, least: float) -> None:
    weight = normal(100, 256)
    rounded = quantize(weight, Format(bits))
    blocks = weight.reshape(-1, BLOCK)
    low = -(1 << (bits - 1))
    steps = extremes(blocks)[:, None] / low
    nearest = np.clip(np.rint(blocks / steps), low, -low - 1) * steps
    plain = np.linalg.norm(nearest - blocks) / np.linalg.norm(blocks)
    assert np.sqrt(rounded.lost / rounded.whole) < (1 - least) * plain


def test_what_matters_more_is_rounded_better() -> None:
    weight = normal(200, 64)
    importance = np.ones(64, np.float32)
    importance[::2] = 100
    plain, weighed = (dequantize(quantize(weight, Format(4), given)) - weight for given in (None, importance))
    assert np.square(weighed[:, ::2]).sum() < 0.95 * np.square(plain[:, ::2]).sum()
    assert np.square(weighed).sum() > np.square(plain).sum()


def test_scales_outside_float16_are_held_at_its_edge() -> None:
    weight = np.full((1, 32), 1e9, np.float32)
    assert np.isfinite(dequantize(quantize(weight, Format(4, 32, "f16")))).all()


def test_blocks_are_shortened_to_fit() -> None:
    assert Format(4, 128).fitting(96) == Format(4, 32)
    assert Format(4, 128, "i8").fitting(192) == Format(4, 64, "i8")
    assert Format(4).fitting(48) == FP32
    assert FP32.fitting(64) == FP32


def test_row_bytes() -> None:
    assert Format(4).row_bytes(64) == 32 + 8
    assert Format(4, 32, "f16").row_bytes(64) == 32 + 4
    assert Format(2, 64, "i8").row_bytes(64) == 16 + 1 + 4
    assert FP32.row_bytes(64) == 256


@pytest.mark.parametrize("scales", ["f32", "f16", "i8"])
@pytest.mark.parametrize(("bits", "block"), [(2, 32), (2, 64), (4, 32), (4, 128), (8, 32), (8, 64)])
def test_onnxruntime_reads_the_same_weights(tmp_path: Path, bits: int, block: int, scales: Any) -> None:
    weight, form = normal(24, 128, seed=1), Format(bits, block, scales)
    x = normal(1, 5, 128, seed=2)
    with Graph(tmp_path, "one.onnx", lambda _: form) as graph:
        graph.output(graph.linear(graph.input("x", FLOAT, [1, "m", 128]), InMemory(weight)), "y", FLOAT, [1, "m", 24])
        graph.save()
    session = ort.InferenceSession(tmp_path / "one.onnx", providers=["CPUExecutionProvider"])
    expected = x @ dequantize(quantize(weight, form)).T
    error = session.run(None, {"x": x})[0] - expected
    # Activations are rounded to int8 on the way.
    assert np.linalg.norm(error) < 0.02 * np.linalg.norm(expected)
    (reported,) = graph.errors
    lost = np.linalg.norm(dequantize(quantize(weight, form)) - weight) / np.linalg.norm(weight)
    assert reported.relative == pytest.approx(lost, rel=1e-5)


def test_files_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    weight = InMemory(normal(100, 64))
    written = []
    for workers, chunk in [(1, 1 << 20), (1, 1000), (3, 1000), (16, 256), (2, 1)]:
        told: list[int] = []
        with Graph(tmp_path, "one.onnx", lambda _: Format(4, 32, "i8"), told.append, Pace(workers, chunk)) as graph:
            x = graph.input("x", FLOAT, [1, 64])
            graph.output(graph.linear(x, weight), "y", FLOAT, [1, 100])
            graph.output(graph.linear(x, weight, FP32), "z", FLOAT, [1, 100])
            graph.save()
        assert sum(told) == 2 * 100 * 64
        written.append(((tmp_path / "one.onnx").read_bytes(), (tmp_path / "one.onnx_data").read_bytes()))
    assert len(set(written)) == 1


def test_a_failing_thread_ends_the_work(tmp_path: Path) -> None:
    class Broken(InMemory):
        def rows(self, start: int, stop: int) -> NDArray[np.float32]:
            if start > 20:
                raise OSError(5, "Input/output error")
            return super().rows(start, stop)

    with (
        Graph(tmp_path, "one.onnx", lambda _: Format(4), None, Pace(2, 2000)) as graph,
        pytest.raises(OSError, match="Input/output"),
    ):
        graph.linear(graph.input("x", FLOAT, [1, 64]), Broken(normal(100, 64)))


def test_a_matrix_behind_a_norm_is_rounded_by_the_norms_weight(tmp_path: Path) -> None:
    weight, norm = normal(64, 64), np.exp(normal(64, seed=1))
    form = Format(4)
    with Graph(tmp_path, "one.onnx", lambda _: form) as graph:
        x = graph.input("x", FLOAT, [1, 64])
        graph.output(graph.linear(graph.rms_norm(x, graph.const(norm), 1e-6), InMemory(weight)), "y", FLOAT, [1, 64])
        graph.save()
    found = rounded_matrices(tmp_path / "one.onnx")["m"][1]
    assert (found == dequantize(quantize(weight, form, np.square(norm)))).all()
    plain = dequantize(quantize(weight, form))
    assert np.square((found - weight) * norm).sum() < np.square((plain - weight) * norm).sum()
