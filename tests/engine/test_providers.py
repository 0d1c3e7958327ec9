"""The same graphs on another provider; with an NVIDIA GPU: pip install onnxruntime-gpu && pytest -m cuda."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.onnx.session import CPU, available
from edge_runtime.engine.protocol import Request, Sampling
from tests.engine import runs

if TYPE_CHECKING:
    from pathlib import Path

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
LONG = "What time does the museum open? " * 60


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
def test_without_a_gpu_the_cpu_computes_and_that_is_said(fp32_bundle: Path, caplog: pytest.LogCaptureFixture):
    engine = OnnxEngine(fp32_bundle, threads=1, context=128, providers="cuda")
    assert "the model runs on the CPU: this ONNX Runtime has no CUDAExecutionProvider" in caplog.text
    assert engine._decoder._session.get_providers() == list(CPU)
    assert list(engine.run(Request(raw="Hello", max_tokens=1)))
    engine.close()


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA in this ONNX Runtime")
@pytest.mark.parametrize("kv_type", ["fp32", "int8"])
def test_the_gpu_gives_what_the_cpu_gives(fp32_bundle: Path, engine: OnnxEngine, kv_type: str):
    assert available("cuda")[0] == "CUDAExecutionProvider"
    other = OnnxEngine(fp32_bundle, threads=1, providers="cuda", kv_type=kv_type)
    assert "CUDAExecutionProvider" in other._decoder._session.get_providers()
    for words in ("Who are you?", LONG):
        request = Request([{"role": "user", "content": words}], max_tokens=32, sampling=Sampling(temperature=0))
        expected = runs.first_logits(engine, engine.prepare(request))
        found = runs.first_logits(other, other.prepare(request))
        assert np.abs(found - expected).max() < (1e-2 if kv_type == "fp32" else 0.5)
        assert runs.greedy(other, other.prepare(request)) == runs.greedy(engine, engine.prepare(request))
    other.close()
