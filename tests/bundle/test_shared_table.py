from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.bundle.shared_table import SharedSpec, SharedTable
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.quant import Format, dequantize, quantize

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ROWS, DIM = 50, 128


def written(folder: Path, form: Format) -> tuple[SharedSpec, NDArray[np.float32]]:
    """A data file with a matrix in it, and what the matrix is."""
    rounded = quantize(np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32), form)
    parts = [rounded.packed, rounded.scales, rounded.factors if rounded.factors is not None else np.zeros(0)]
    data, offsets = b"something else", []
    for part in parts:
        offsets.append(len(data))
        data += part.tobytes() + b"gap"
    (folder / "data").write_bytes(data)
    packed_at, scales_at, factors_at = offsets
    return SharedSpec(
        "data", ROWS, DIM, form.bits, form.block, form.scales, packed_at, scales_at, factors_at, 2.5
    ), dequantize(rounded)


@pytest.mark.parametrize("scales", ["f32", "f16", "i8"])
@pytest.mark.parametrize(("bits", "block"), [(2, 64), (4, 32), (8, 128)])
def test_rows_are_those_of_the_matrix_times_the_multiplier(tmp_path: Path, bits: int, block: int, scales: Any) -> None:
    spec, matrix = written(tmp_path, Format(bits, block, scales))
    ids = np.array([7, 0, 7, ROWS - 1])
    with SharedTable(tmp_path, spec) as table:
        table.prefetch(np.array([3, -1, ROWS]))
        assert np.allclose(table.read(ids), 2.5 * matrix[ids], rtol=1e-6, atol=0)
        assert table.read(np.zeros(0, np.int64)).shape == (0, DIM)


def test_ids_outside_and_files_too_short_are_refused(tmp_path: Path) -> None:
    spec, _ = written(tmp_path, Format(4, 32, "i8"))
    with SharedTable(tmp_path, spec) as table:
        for row in (-1, ROWS):
            with pytest.raises(EdgeRuntimeError, match="outside a table of 50 rows"):
                table.read(np.array([row]))
        (tmp_path / "data").write_bytes((tmp_path / "data").read_bytes()[: spec.factors_at])
        with pytest.raises(EdgeRuntimeError, match="row 0 is cut off"):
            table.read(np.array([0]))
    with pytest.raises(EdgeRuntimeError, match="the embedding in it ends at"):
        SharedTable(tmp_path, spec)
    with pytest.raises(EdgeRuntimeError, match="No such file"):
        SharedTable(tmp_path / "nowhere", spec)


def test_spec_survives_json_and_nonsense_is_refused(tmp_path: Path) -> None:
    spec, _ = written(tmp_path, Format(4))
    data = json.loads(json.dumps(spec.to_json()))
    assert SharedSpec.from_json(data) == spec
    assert spec.end == spec.scales_at + ROWS * DIM // 32 * 4
    for change in ({"bits": 3}, {"block": 0}, {"block": 48}, {"scales": "f8"}, {"more": 1}):
        with pytest.raises(EdgeRuntimeError, match="embedding"):
            SharedSpec.from_json({**data, **change})
    assert dataclasses.replace(spec, scales="f16").scale_bytes == spec.scale_bytes // 2
