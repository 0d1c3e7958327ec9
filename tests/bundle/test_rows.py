from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge_runtime.bundle.rows import decode, encode, prefix_bytes
from edge_runtime.bundle.tables import TableSpec

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((40, 256)).astype(np.float32)


def spec_of(bits: int, block: int, rows: int = 40, dim: int = 256, multiplier: float = 1.0) -> TableSpec:
    return TableSpec.make(rows=rows, dim=dim, bits=bits, block=block, multiplier=multiplier)


def stored(values: np.ndarray, bits: int, block: int) -> np.ndarray:
    spec = spec_of(bits, block, *values.shape)
    return decode(encode(values, spec), spec, 0, spec.dim)


def relative(values: np.ndarray, bits: int, block: int) -> float:
    return float(np.linalg.norm(stored(values, bits, block) - values) / np.linalg.norm(values))


def on_grid(top: int) -> np.ndarray:
    """Values that were rounded in blocks of 32 to levels of which the largest is `top`."""
    blocks = NORMAL.reshape(-1, 32)
    at = np.abs(blocks).argmax(-1)[:, None]
    scales = np.take_along_axis(blocks, at, -1) / top
    return (np.clip(np.rint(blocks / scales), -8, 7) * scales).reshape(NORMAL.shape)


def test_four_bit_layout_by_hand() -> None:
    values = np.zeros((1, 64), np.float32)
    values[0, :3] = [-8.0, 7.0, 1.0]
    values[0, 32:34] = [2.0, -0.25]
    spec = spec_of(4, 32, 1, 64)
    row = encode(values, spec)[0]
    assert spec.row_bytes == 48  # a factor of 4, two blocks of 17, padded to 16
    factor = row[:4].view(np.float32)[0]
    assert factor == pytest.approx(1 / 127**2)
    assert row[4] == 127  # scale 1, as the root of 127 squares
    assert row[5:7].tolist() == [0 | 15 << 4, 9 | 8 << 4]
    assert (row[7:21] == 0x88).all()
    # Of magnitude 2, so -8 stands for 2 and the scale is -1/4: -63.5 as a root, which the even neighbour rounds.
    assert row[21].view(np.int8) == -64
    assert row[22] == 0 | 9 << 4
    assert not row[38:].any()
    assert decode(row[None], spec, 0, 64)[0, 32] == pytest.approx(2.0, rel=0.02)


def test_eight_bit_layout_by_hand() -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, :2] = [-127.0, 64.0]
    row = encode(values, spec_of(8, 32, 1, 32))[0]
    assert row[4] == 127
    assert row[5:7].view(np.int8).tolist() == [-127, 64]


def test_plain_rows_are_float32() -> None:
    spec = spec_of(32, 32, multiplier=3.0)
    rows = encode(NORMAL, spec)
    assert (rows.view(np.float32) == NORMAL).all()
    assert (decode(rows, spec, 32, 64) == NORMAL[:, 32:64] * 3).all()


@pytest.mark.parametrize(
    ("bits", "block", "worst"), [(4, 32, 0.083), (4, 64, 0.092), (4, 256, 0.104), (8, 32, 0.0055), (8, 64, 0.006)]
)
def test_rounding_error_of_normal_values(bits: int, block: int, worst: float) -> None:
    assert worst * 0.95 < relative(NORMAL, bits, block) < worst


@pytest.mark.parametrize("top", [-8, 7])
def test_values_on_a_grid_keep_their_levels(top: int) -> None:
    """What quantisation-aware training left on a 4-bit grid is found again; only the scales are rounded."""
    values = on_grid(top)
    assert relative(values, 4, 32) < 0.007
    assert relative(values, 4, 64) > 0.05
    found = stored(values, 4, 32)
    assert ((found == 0) == (values == 0)).all()
    ratios = np.divide(found, values, out=np.ones_like(values), where=values != 0).reshape(-1, 32)
    assert np.where(values.reshape(-1, 32) == 0, 0, ratios / np.median(ratios, -1)[:, None] - 1).max() < 1e-5


def test_the_search_never_errs_more_than_the_plain_rule() -> None:
    blocks = NORMAL.reshape(-1, 32)
    at = np.abs(blocks).argmax(-1)[:, None]
    scales = np.take_along_axis(blocks, at, -1) / -8
    plain = np.clip(np.rint(blocks / scales), -8, 7) * scales
    assert relative(NORMAL, 4, 32) < 0.97 * np.linalg.norm(plain - blocks) / np.linalg.norm(blocks)


def test_blocks_of_very_different_size_share_a_row() -> None:
    values = (NORMAL.reshape(40, 8, 32) * np.logspace(-2, 0, 8)[:, None]).reshape(40, 256).astype(np.float32)
    difference = (stored(values, 4, 32) - values).reshape(40, 8, 32)
    errors = np.linalg.norm(difference, axis=(0, 2)) / np.linalg.norm(values.reshape(40, 8, 32), axis=(0, 2))
    assert errors.max() < 0.1


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_and_extremes(bits: int) -> None:
    values = np.zeros((4, 64), np.float32)
    values[1, 5] = 1e-30
    values[2, 5] = 1e15
    values[3] = -1.0
    found = stored(values, bits, 32)
    assert not found[0].any()
    np.testing.assert_allclose(found[1:], values[1:], rtol=0.01)


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 64), (8, 32), (32, 32)])
def test_any_leading_part_of_a_row_can_be_decoded(bits: int, block: int) -> None:
    spec = spec_of(bits, block, multiplier=0.5)
    rows = encode(NORMAL, spec)
    whole = decode(rows, spec, 0, 256)
    for start, stop in ((0, 64), (64, 192), (192, 256), (128, 128)):
        part = np.ascontiguousarray(rows[:, : prefix_bytes(spec, stop)])
        assert (decode(part, spec, start, stop) == whole[:, start:stop]).all()


def test_encoding_does_not_depend_on_how_rows_are_grouped() -> None:
    values = RNG.standard_normal((600, 256)).astype(np.float32)
    spec = spec_of(4, 64, 600)
    whole = encode(values, spec)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: encode(values[start : start + 37], spec), range(0, 600, 37)))
    assert (np.concatenate(parts) == whole).all()
