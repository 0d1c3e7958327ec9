"""onnxruntime-genai's side of `benchmarks.peers_cut`; runs in its environment, where edge-runtime is not installed.

python peers_genai.py make CHECKPOINT OUT
python peers_genai.py run MODEL PROMPT_TOKENS NEW_TOKENS THREADS
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def make(checkpoint: str, out: str) -> None:
    """Graphs of mobius, the decoder's matrices in four bits, blocks of 32, int8 products as ours."""
    import onnx  # noqa: PLC0415
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits  # noqa: PLC0415

    mobius = str(Path(sys.executable).with_name("mobius"))
    build = [mobius, "build", "--config", checkpoint, "--ep", "cpu", "--runtime", "ort-genai", "--dtype", "f32", out]
    subprocess.run(build, check=True)
    path = Path(out, "decoder", "model.onnx")
    settings = nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4, bits=4)
    quantizer = nbits.MatMulNBitsQuantizer(onnx.load(path), algo_config=settings)
    quantizer.process()
    for old in path.parent.iterdir():
        old.unlink()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=True)
    about = Path(out, "genai_config.json")
    config: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
    config["model"]["type"] = "gemma4"  # mobius 0.1.0 writes a type that genai 0.18 opens with another engine only
    about.write_text(json.dumps(config), encoding="utf-8")


def run(model: str, prompt: int, new_tokens: int, threads: int) -> None:
    """Prints one JSON object: load_s, prefill and decode in tokens/s, peak_mb."""
    about = Path(model, "genai_config.json")
    config: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
    for part in ("decoder", "embedding"):
        config["model"][part]["session_options"]["intra_op_num_threads"] = threads
    about.write_text(json.dumps(config), encoding="utf-8")
    began = time.perf_counter()
    import numpy as np  # noqa: PLC0415
    import onnxruntime_genai as genai  # noqa: PLC0415

    loaded = genai.Model(model)
    load_s = time.perf_counter() - began

    def answer(count: int, written: int) -> tuple[float, float]:
        options = genai.GeneratorParams(loaded)
        options.set_search_options(max_length=count + written + 8, do_sample=False)
        generator = genai.Generator(loaded, options)
        ids = np.random.default_rng(count).integers(1000, 200000, count).astype(np.int32)
        start = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(written):
            generator.generate_next_token()
        return count / (first - start), written / (time.perf_counter() - first)

    answer(64, 4)
    prefill, decode = answer(prompt, new_tokens)
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if ":" in line
    )
    peak = int(status["VmHWM"].split()[0]) * 1024 / 1e6
    found = {"load_s": load_s, "prefill": prefill, "decode": decode, "peak_mb": peak}
    print(json.dumps({key: round(value, 2) for key, value in found.items()}))


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "make":
        make(*rest)
    else:
        run(rest[0], *map(int, rest[1:]))
