from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import experts
from edge_runtime.export import export_checkpoint
from tests.export.tiny import write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_measured(tmp_path: Path):
    changes: dict[str, Any] = {"vocab_size": experts.VOCAB, "hidden_size_per_layer_input": 0}
    changes |= {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 32}
    folders = {"dense": tmp_path / "dense", "experts": tmp_path / "experts"}
    for kind, folder in folders.items():
        write_checkpoint(tmp_path / f"{kind} model", **changes, enable_moe_block=kind == "experts")
        export_checkpoint(tmp_path / f"{kind} model", folder)
    result = experts.measure(folders, 1)
    # 6 layers, 2 of 8 experts, int4 with a scale for each 32 weights.
    assert result["bytes_read"]["chosen_experts"] > 6 * 2 * 3 * 64 * 32 // 2
    assert set(result["milliseconds"]) == {f"{kind}, {n} tokens" for kind in folders for n in (1, experts.CHUNK)}
    assert result["times_ideal"] > 0
