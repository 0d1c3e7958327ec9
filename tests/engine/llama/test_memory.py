from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.engine.llama.memory import Parts, cache_bytes, fit, place, plan
from edge_runtime.engine.llama.metadata import Gguf, Tensor
from edge_runtime.engine.llama.options import Options
from edge_runtime.engine.llama.program import Device
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.machine import Memory
from tests.engine.llama.heads import GB, moe

PATH = Path("big.gguf")
OPTIONS = Options(PATH, context=4096, threads=4)


def test_the_cache_of_sliding_layers_is_their_window_and_a_batch():
    full = 5 * 4096 * 2 * 512 * 2 * 2
    sliding = 25 * 1280 * 2 * 256 * 8 * 2
    assert cache_bytes(moe(PATH), 4096, "f16", 256) == full + sliding


def test_the_plan_counts_the_weights_the_head_twice_and_lazy_tables_apart():
    model = moe(PATH)
    head = model.tensors[0].size  # in Q6_K: held as it is for its rows, and once more laid out for the CPU
    assert plan(Parts(model), OPTIONS).weights == sum(tensor.size for tensor in model.tensors) + head
    table = Tensor("per_layer_token_embd.weight", (1,), "Q6_K", 2 * GB)
    lazy = Gguf(PATH, model.values, (*model.tensors, table), 0)
    made = plan(Parts(lazy), Options(PATH, context=4096, threads=4, lazy=True))
    assert (made.weights, made.tables) == (plan(Parts(model), OPTIONS).weights, 2 * GB)


def test_a_short_memory_gets_a_smaller_cache_then_a_shorter_context():
    parts = Parts(moe(PATH))
    whole = plan(parts, OPTIONS).total
    chosen, made = fit(parts, OPTIONS, Memory(whole, whole - 1), fixed=False)
    assert (chosen.kv_type, chosen.context, made.total < whole) == ("q8_0", 4096, True)
    smaller = made.total
    chosen, _ = fit(parts, OPTIONS, Memory(whole, smaller - 1), fixed=False)
    assert chosen.context == 2048


def test_what_cannot_fit_is_refused_with_what_would():
    with pytest.raises(
        EdgeRuntimeError, match=r"big.gguf needs 1\d\.\d GB .* 8.0 GB are free: gemma-4-\S+ .*would fit"
    ):
        fit(Parts(moe(PATH)), OPTIONS, Memory(16 * GB, 8 * GB), fixed=True)


def _device(free: float, total: float = 0) -> list[Device]:
    return [Device("GPU", int((total or free) * GB), int(free * GB))]


HAVE = Memory(64 * GB, 60 * GB)


def test_a_large_graphics_memory_takes_everything():
    assert place(Parts(moe(PATH)), OPTIONS, _device(24), HAVE).gpu_layers == 31


def test_a_small_one_leaves_experts_in_main_memory():
    placed = place(Parts(moe(PATH)), OPTIONS, _device(8), HAVE)
    assert placed.gpu_layers == 31
    assert 10 < placed.cpu_experts < 30


def test_a_tiny_one_takes_the_layers_that_fit():
    placed = place(Parts(moe(PATH, expert=0, rest=400_000_000)), OPTIONS, _device(4), HAVE)
    assert 0 < placed.gpu_layers < 30
    assert placed.cpu_experts == 0


def test_memory_that_is_shared_is_not_counted_twice():
    shared = Memory(8 * GB, 6 * GB)
    assert place(Parts(moe(PATH, expert=0)), OPTIONS, _device(7.5, 8), shared).gpu_layers == 31
    assert place(Parts(moe(PATH, expert=0, rest=300_000_000)), OPTIONS, _device(7.5, 8), shared).gpu_layers < 30


def test_no_graphics_nothing_moves():
    assert place(Parts(moe(PATH)), OPTIONS, [], HAVE) == OPTIONS
