"""Bundles of the built-in checkpoint, exported once a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.engine.onnx.engine import OnnxEngine

BUILT_IN = Path(__file__).parents[2] / "models" / "nano" / "checkpoint"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """`$EDGE_RUNTIME_TEST_CHECKPOINT`, else the built-in model's checkpoint."""
    folder = Path(os.environ.get("EDGE_RUNTIME_TEST_CHECKPOINT") or BUILT_IN)
    if not (folder / "config.json").is_file():
        pytest.skip(f"no checkpoint at {folder}")
    return folder


@pytest.fixture(scope="session")
def fp32_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edge_runtime.export.pipeline import export_checkpoint

    bundle = tmp_path_factory.mktemp("bundles") / "fp32"
    export_checkpoint(checkpoint, bundle, recipe="fp32")
    return bundle


@pytest.fixture(scope="session")
def engine(fp32_bundle: Path) -> Iterator[OnnxEngine]:
    from edge_runtime.engine.onnx.engine import OnnxEngine

    engine = OnnxEngine(fp32_bundle, threads=1)
    yield engine
    engine.close()
