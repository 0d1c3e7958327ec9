from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.calibrated import Moments, compensate, followers, run_width
from edge_runtime.export.quant import Format, dequantize, quantize

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WEIGHT = np.random.default_rng(0).standard_normal((40, 192)).astype(np.float32)
FORMATS = [Format(4, 32, "i8"), Format(4, 64, "f16"), Format(2, 32, "f32"), Format(2, 64, "i8")]


def inputs(seed: int) -> NDArray[np.float32]:
    """Vectors [n, 192] whose columns go together, some of them always 0."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((2000, 12)) @ rng.standard_normal((12, 192)) + 0.3 * rng.standard_normal((2000, 192))
    found[:, 5:9] = 0
    return found.astype(np.float32)


def moments(x: NDArray[np.float32]) -> NDArray[np.float32]:
    run = run_width(x.shape[1])
    columns = x.reshape(len(x), -1, run)
    found: NDArray[np.float32] = np.einsum("ngi,ngj->gij", columns, columns)
    return found


def column_by_column(weight: NDArray[np.float32], second: NDArray[np.float32], steps: NDArray[np.float32], bits: int):
    """GPTQ as its paper has it, in float64, within one run."""
    damped = second.astype(np.float64) + np.eye(len(second)) * 0.1 * np.trace(second) / len(second)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, result = weight.astype(np.float64), np.empty(weight.shape)
    for k in range(weight.shape[1]):
        level = np.clip(np.rint(left[:, k] / steps[:, k]), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        result[:, k] = level * steps[:, k]
        error = (left[:, k] - result[:, k]) / upper[k, k]
        left[:, k + 1 :] -= error[:, None] * upper[k, k + 1 :]
    return result


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_it_is_gptq_with_the_scales_of_plain_rounding(form: Format) -> None:
    second = moments(inputs(1))
    plain, found = quantize(WEIGHT, form), compensate(WEIGHT, form, followers(second))
    assert (found.scales == plain.scales).all()
    steps = np.repeat(plain.steps(), form.block, axis=1)
    right = column_by_column(WEIGHT, second[0], steps, form.bits)
    # Where a value lies in the middle of two levels, float32 may choose the other, and what follows goes another way.
    assert (np.abs(dequantize(found) - right) < 1e-5).mean() > 0.97
    assert found.lost == pytest.approx(np.square(dequantize(found) - WEIGHT).sum(), rel=1e-4)
    assert found.whole == pytest.approx(plain.whole)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_products_err_less_though_weights_err_more(form: Format) -> None:
    plain, found = quantize(WEIGHT, form), compensate(WEIGHT, form, followers(moments(inputs(1))))
    x = inputs(1)[:500]
    errors = [np.square(x @ (dequantize(rounded) - WEIGHT).T).sum() for rounded in (plain, found)]
    assert errors[1] < 0.6 * errors[0]
    assert found.lost > plain.lost


def test_rows_do_not_depend_on_each_other_and_runs_neither() -> None:
    weight = np.random.default_rng(2).standard_normal((20, 512)).astype(np.float32)
    x = np.random.default_rng(3).standard_normal((900, 512)).astype(np.float32)
    form, second = Format(4, 32, "i8"), moments(x)
    whole = compensate(weight, form, followers(second))
    part = compensate(weight[4:9], form, followers(second))
    assert (part.packed == whole.packed[4:9]).all()
    second[0] = np.eye(256)
    assert (compensate(weight, form, followers(second)).packed[:, 8:] == whole.packed[:, 8:]).all()


def test_inputs_that_do_not_go_together_change_nothing() -> None:
    second = np.eye(192, dtype=np.float32)[None]
    found = compensate(WEIGHT, FORMATS[0], followers(second))
    assert (found.packed == quantize(WEIGHT, FORMATS[0]).packed).mean() > 0.999


def test_runs_fill_every_width() -> None:
    assert {width: run_width(width) for width in (32, 96, 256, 320, 1536, 2112, 2560, 12288)} == {
        32: 32,
        96: 96,
        256: 256,
        320: 160,
        1536: 256,
        2112: 192,
        2560: 256,
        12288: 256,
    }


def test_moments_of_another_model_and_of_none(tmp_path: Path) -> None:
    path = tmp_path / "moments.npz"
    np.savez(path, a=np.ones((1, 64, 64), np.float32))
    found = Moments.open(path)
    assert found.of("b", 64) is None
    assert found.of("a", 64).shape == (1, 64, 64)
    with pytest.raises(EdgeRuntimeError, match="the moments of a are those of another model"):
        found.of("a", 128)
    path.write_bytes(b"nothing")
    with pytest.raises(EdgeRuntimeError, match="holds no moments"):
        Moments.open(path)
    with pytest.raises(EdgeRuntimeError, match="holds no moments"):
        Moments.open(tmp_path / "absent")
