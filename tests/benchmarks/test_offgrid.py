from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks import offgrid
from edge_runtime.export.safetensors import Checkpoint
from tests.export import tiny

if TYPE_CHECKING:
    from pathlib import Path


def test_the_twin_leaves_the_grid_by_half_a_step_at_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "model.language_model.layers.0.mlp.up_proj.weight": rng.normal(size=(8, 64)).astype(np.float32),
        "model.language_model.norm.weight": np.ones(64, np.float32),
        "model.vision_tower.proj.weight": rng.normal(size=(4, 64)).astype(np.float32),
    }
    (tmp_path / "source").mkdir()
    tiny.write_safetensors(tmp_path / "source" / "model.safetensors", tensors, "BF16")
    (tmp_path / "source" / "config.json").write_text("{}")
    for name in ("one", "same"):
        offgrid.make(tmp_path / "source", tmp_path / name, seed=1)
    with Checkpoint(tmp_path / "source") as source, Checkpoint(tmp_path / "one") as one:
        for name in tensors:
            before, after = source.get(name).read(), one.get(name).read()
            if "mlp" not in name:
                assert np.array_equal(before, after)
                continue
            steps = np.repeat(np.abs(before.reshape(8, 2, 32)).max(-1) / 8, 32, axis=1)
            moved = (after - before) / steps
            assert np.abs(moved).max() < 0.52  # bfloat16 rounds a little further
            assert 0.25 < moved.std() < 0.33  # 1 / sqrt(12)
    assert (tmp_path / "one" / "config.json").read_text() == "{}"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same")]
    assert weights[0] == weights[1]
