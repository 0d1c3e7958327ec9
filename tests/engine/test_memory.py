"""What is announced before a model is loaded is never passed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import edge_runtime
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.onnx.kv_cache import KVCache
from edge_runtime.engine.onnx.memory import plan, plan_and_check
from edge_runtime.engine.protocol import Request
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export import export_checkpoint
from tests.export.tiny import write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.manifest import Manifest

# A process of its own: reads a full context, an image and a sound, and looks at itself all the while.
SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
from edge_runtime.engine.onnx import packed
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.protocol import Request

folder, options, media = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
most, stop = 0, threading.Event()

def look():
    global most
    while not stop.wait(0.002):
        with open("/proc/self/status") as status:
            now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
        most = max(most, now)

watcher = threading.Thread(target=look, daemon=True)
watcher.start()
packed.WORTH = 0
if "cache" in options:
    options["cache"] = Path(options["cache"])
engine = OnnxEngine(folder, threads=2, **options)
assert ("cache" in options) == (engine.memory.prefill > 0)
if media:
    import PIL.Image
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 900, 3), np.uint8))
    items = [{"type": "image", "image": picture}, {"type": "audio", "audio": np.full(480_000, 0.1, np.float32)}]
    for item in items:
        content = [item, {"type": "text", "text": "What?"}]
        list(engine.run(Request([{"role": "user", "content": content}], max_tokens=3)))
rng = np.random.default_rng(0)
for decoder in [seat.decoder for seat in engine._seats._seats]:
    decoder.begin()
    for first, end in decoder.cuts(decoder.context, decoder.chunk):
        ids = rng.integers(3, 90, end - first)
        decoder.step(ids, decoder.embed(ids), end == decoder.context)
    decoder.cache.go_back(decoder.context - 8)
    decoder.step(ids[:8], decoder.embed(ids[:8]), 8)
    for number in range(4):
        seat = engine._seats._seats[0]
        engine._seats.mark(seat)
        seat._keys[:] = number
        seat.remember()
        engine._seats.save(seat)
stop.set()
watcher.join()
print(json.dumps([most, engine.memory.anonymous, engine._seats._kept.used]))
"""


def measured(bundle: Path, options: dict[str, Any], *, media: bool) -> tuple[int, int, int]:
    command = [sys.executable, "-c", SCRIPT, str(bundle), json.dumps(options), json.dumps(media)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    most, announced, kept = json.loads(done.stdout)
    return most, announced, kept


@pytest.fixture(scope="module")
def manifest(fp32_bundle: Path) -> Manifest:
    return read_manifest(fp32_bundle)


@pytest.mark.parametrize(
    "options",
    [
        {"context": 4096},
        {"context": 1024, "kv_type": "int8", "sessions": 3},
        {"context": 2048, "kv_type": "fp16"},
    ],
    ids=["plain", "int8, three sessions", "fp16"],
)
def test_the_built_in_model_stays_within_its_plan(fp32_bundle: Path, options: dict[str, Any]):
    most, announced, kept = measured(fp32_bundle, options, media=options["context"] == 4096)
    print(f"\n{options}: {most / 1e6:.0f} MB at most, {announced / 1e6:.0f} MB announced")
    assert kept > 0
    assert most <= announced


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("int4", {"hidden_size": 1024, "intermediate_size": 8192, "vocab_size": 4096, "sliding_window": 512}),
        ("fp32", {"hidden_size": 512, "intermediate_size": 2048, "num_kv_shared_layers": 0}),
        ("int8", {"hidden_size": 512, "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2,
                  "moe_intermediate_size": 512}),
    ],
    ids=["wide", "every layer its own", "experts"],
)  # fmt: skip
def test_other_shapes_stay_within_theirs(tmp_path: Path, checkpoint: Path, recipe: str, changes: dict[str, Any]):
    write_checkpoint(tmp_path / "model", **changes)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json"):
        (tmp_path / "model" / name).write_bytes((checkpoint / name).read_bytes())
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe=recipe)
    most, announced, _ = measured(tmp_path / "bundle", {"context": 2048}, media=False)
    print(f"\n{recipe} {changes}: {most / 1e6:.0f} MB at most, {announced / 1e6:.0f} MB announced")
    assert most <= announced


def test_with_matrices_for_prompts_too(tmp_path: Path, checkpoint: Path):
    write_checkpoint(tmp_path / "model", hidden_size=1024, intermediate_size=8192, vocab_size=4096, sliding_window=512)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json"):
        (tmp_path / "model" / name).write_bytes((checkpoint / name).read_bytes())
    export_checkpoint(tmp_path / "model", tmp_path / "bundle", recipe="int4")
    for _ in range(2):  # while they are made, and when they are there
        options = {"context": 2048, "cache": str(tmp_path / "cache")}
        most, announced, _ = measured(tmp_path / "bundle", options, media=False)
        assert most <= announced


@pytest.mark.parametrize("kv_type", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("context", [100, 3000])
def test_keys_and_values_are_reserved_as_announced(manifest: Manifest, kv_type: Any, context: int):
    cache = KVCache(manifest.geometry.text, context, 256, kv_type=kv_type)
    reserved = sum(buffer.nbytes for buffer in cache.buffers.values())
    assert reserved == cache.nbytes
    planned = plan(manifest, context=context, kv_type=kv_type, sessions=2)
    assert planned.kv == 2 * (reserved + 8 * context)


def test_what_does_not_fit_is_refused_with_what_would(manifest: Manifest, fp32_bundle: Path):
    def refusal(**options: Any) -> str:
        with pytest.raises(EdgeRuntimeError) as error:
            plan_and_check(manifest, **{"context": 4096, "kv_type": "fp32", "sessions": 1, "mapped": False, **options})
        assert error.value.code == "too_large"
        assert "\n" not in str(error.value)
        return str(error.value)

    smallest = plan(manifest, context=4096, budget=0).total
    assert "a smaller recipe" in refusal(budget=1000)
    long = plan(manifest, context=65536, budget=0).total
    line = refusal(context=65536, budget=(smallest + long) // 2)
    assert "kv_type int8 or a context of 32768 would fit" in line
    assert "one session" in refusal(sessions=9, budget=smallest + 1000)
    with pytest.raises(EdgeRuntimeError, match=r"takes .* MB, the memory budget is 50 MB: take a smaller"):
        edge_runtime.load(fp32_bundle, memory_budget="48M")
    with pytest.raises(EdgeRuntimeError, match="must be a size such as"):
        edge_runtime.load(fp32_bundle, memory_budget="much")


def test_what_is_kept_of_prompts_takes_what_is_left(manifest: Manifest):
    bare = plan(manifest, context=4096, budget=0)
    assert bare.prefix_cache == 0
    budget = bare.total + 1_000_000
    planned = plan_and_check(manifest, context=4096, kv_type="fp32", sessions=1, mapped=False, budget=budget)
    assert planned.prefix_cache == 1_000_000
    assert planned.total == budget


def test_larger_images_only_where_the_budget_allows(manifest: Manifest, fp32_bundle: Path):
    import PIL.Image

    picture = PIL.Image.new("RGB", (64, 64))
    request = Request([{"role": "user", "content": [{"type": "image", "image": picture}]}], image_tokens=1120)
    bare = plan(manifest, context=2048, budget=0).total
    for budget, fits in ((bare + 1000, False), (1 << 34, True), (None, True)):
        engine = OnnxEngine(fp32_bundle, threads=1, context=2048, memory_budget=budget)
        if fits:
            assert engine.prepare(request).prompt.images
        else:
            with pytest.raises(EdgeRuntimeError, match="within the memory budget images have 280 at most"):
                engine.prepare(request)
        engine.close()


def test_a_model_says_what_it_takes(fp32_bundle: Path):
    with edge_runtime.load(fp32_bundle, threads=1, memory_budget="1G", kv_type="int8", context=256) as model:
        assert model.memory is not None
        assert model.memory.total <= 1 << 30
        assert model.memory.lines()[-1].startswith("together: ")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kv_type": "int3"}, "kv_type is 'int3'; it must be one of fp32, fp16, int8"),
        ({"sessions": 0}, "sessions is 0; it must be 1 to 64"),
        ({"providers": "tpu"}, "providers is 'tpu'; it must be one of cpu, cuda"),
    ],
)
def test_bad_options_give_one_line(fp32_bundle: Path, options: dict[str, Any], line: str):
    with pytest.raises(EdgeRuntimeError, match=line):
        OnnxEngine(fp32_bundle, **options)
