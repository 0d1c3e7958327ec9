"""The package itself: quick to import, quiet, and honest about its names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edge_runtime


def run(code: str, **env: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env or None
    ).stdout


def test_import_brings_nothing_heavy():
    code = "import sys, edge_runtime; print(*sorted(sys.modules))"
    modules = run(code).split()
    assert not {"numpy", "onnxruntime", "tokenizers", "jinja2", "PIL", "soundfile", "torch", "transformers"} & set(
        modules
    )


def test_loading_the_engine_brings_no_torch():
    code = "import sys, edge_runtime.engine.onnx.engine; print(*sorted(sys.modules))"
    assert not {"onnx", "torch", "transformers", "edge_runtime.export"} & set(run(code).split())


def test_telemetry_is_off_before_anything_else():
    code = "import edge_runtime, os; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['ORT_TELEMETRY_DISABLED'])"
    assert run(code).split() == ["1", "1"]


def test_public_names():
    for name in edge_runtime.__all__:
        assert getattr(edge_runtime, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        edge_runtime.nothing  # noqa: B018
