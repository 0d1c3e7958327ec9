from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest, verify
from edge_runtime.bundle.tables import Table
from edge_runtime.export import export_checkpoint
from edge_runtime.export.safetensors import Checkpoint
from edge_runtime.export.tables import choose_spec
from tests.export.tiny import write_checkpoint, write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

E2B = 35 * 256


def on_grid(values: np.ndarray) -> np.ndarray:
    """Rounded in blocks of 32 to 4 bits, as quantisation-aware training does."""
    blocks = values.reshape(-1, 32)
    scales = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[:, None], -1) / -8
    return (np.clip(np.rint(blocks / scales), -8, 7) * scales).astype(np.float32).reshape(values.shape)


@pytest.mark.parametrize(
    ("trained", "bits", "unit", "expected"),
    [
        (False, 4, 256, (4, 64)),
        (True, 4, 256, (4, 32)),
        (False, 8, 256, (8, 64)),
        (True, 8, 256, (8, 64)),
        (False, 4, 32, (4, 32)),
        (False, 4, 40, (4, 8)),
        (False, 4, 35, (32, 32)),
        (False, 32, 256, (32, 32)),
    ],
)
def test_blocks_suit_the_values(tmp_path: Path, trained: bool, bits: int, unit: int, expected: tuple[int, int]) -> None:
    values = np.random.default_rng(0).standard_normal((420, E2B)).astype(np.float32)
    write_safetensors(tmp_path / "model.safetensors", {"table": on_grid(values) if trained else values}, "BF16")
    with Checkpoint(tmp_path) as checkpoint:
        spec = choose_spec(checkpoint.get("table"), bits, unit, 2.0)
    assert (spec.bits, spec.block) == expected
    assert (spec.rows, spec.dim, spec.multiplier) == (420, E2B, 2.0)


@pytest.mark.parametrize("recipe", ["int4", "fp32"])
def test_a_bundle_holds_the_checkpoints_rows(tmp_path: Path, recipe: str) -> None:
    tensors = write_checkpoint(tmp_path / "model")
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe=recipe)
    assert verify(tmp_path / "bundle") == []
    spec = read_manifest(tmp_path / "bundle").tables[names.PLE_TABLE]
    with Table(tmp_path / "bundle" / names.PLE_TABLE, spec) as table:
        rows = table.read(np.arange(spec.rows)) / spec.multiplier
    expected = tensors["model.embed_tokens_per_layer.weight"]
    assert np.linalg.norm(rows - expected) / np.linalg.norm(expected) < (0.09 if recipe == "int4" else 1e-6)
