"""The same graphs on another provider; with an NVIDIA GPU: pip install onnxruntime-gpu && pytest -m cuda."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.onnx.session import CPU
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import export_checkpoint
from tests.engine import runs

if TYPE_CHECKING:
    from pathlib import Path

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
LONG = "What time does the museum open? " * 60


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
def test_without_a_gpu_the_cpu_computes_and_that_is_said(fp32_bundle: Path, caplog: pytest.LogCaptureFixture):
    engine = OnnxEngine(fp32_bundle, threads=1, context=128, providers="cuda")
    assert "the model runs on the CPU: this ONNX Runtime has no CUDAExecutionProvider" in caplog.text
    assert engine._decoder._core.session.get_providers() == list(CPU)
    assert list(engine.run(Request(raw="Hello", max_tokens=1)))
    engine.close()


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA in this ONNX Runtime")
@pytest.mark.parametrize("recipe", ["fp32", "int4"])
def test_the_gpu_gives_what_the_cpu_gives(recipe: str, checkpoint: Path, tmp_path: Path):
    bundle = tmp_path / "bundle"
    export_checkpoint(checkpoint, bundle, recipe=recipe)
    engine, other = OnnxEngine(bundle, threads=1), OnnxEngine(bundle, threads=1, providers="cuda")
    assert "CUDAExecutionProvider" in other._decoder._core.session.get_providers()
    # On the CPU products of 4 bits round activations to 8 bits, too.
    limit = 0.02 if recipe == "fp32" else 1.0
    for words in ("Who are you?", LONG):
        asked = Request([{"role": "user", "content": words}], max_tokens=32, sampling=Sampling(temperature=0))
        expected = runs.first_logits(engine, engine.prepare(asked))
        found = runs.first_logits(other, other.prepare(asked))
        difference = float(np.abs(found - expected).max())
        print(f"measured: {recipe}, CUDA against the CPU: logits differ by {difference:.4f} at most")
        assert difference < limit
        assert runs.greedy(other, other.prepare(asked)) == runs.greedy(engine, engine.prepare(asked))
    engine.close()
    other.close()


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA in this ONNX Runtime")
@pytest.mark.parametrize("kv_type", ["fp32", "int8"])
def test_what_the_gpu_has_no_attention_for_is_refused(fp32_bundle: Path, kv_type: str):
    with pytest.raises(EdgeRuntimeError, match=f"kv_type is '{kv_type}'; with CUDA it must be fp16"):
        OnnxEngine(fp32_bundle, providers="cuda", kv_type=kv_type)
