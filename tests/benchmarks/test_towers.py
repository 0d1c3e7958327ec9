from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.towers import measure
from edge_runtime.builtin import checkpoint_path
from edge_runtime.export import export_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "built-in"
    export_checkpoint(checkpoint_path(), folder, drafter=checkpoint_path() / "drafter")
    return folder


@pytest.mark.parametrize(
    ("kind", "size", "tokens"), [("image", 70, 63), ("audio", 2, 50), ("stream", 8, 100), ("draft", 20, 1)]
)
def test_what_is_measured(bundle: Path, kind: str, size: int, tokens: int):
    row = measure(bundle, kind, size, threads=1, repeats=2)
    assert row.tokens == tokens
    assert row.seconds > 0
    assert row.loaded <= row.peak
    assert str(row).startswith(f"| {row.what} | {tokens} | ")
