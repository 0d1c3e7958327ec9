"""How much memory a GGUF takes, and what of it goes where on a box, before anything starts.

The sizes of weights and cache are exact; what the program itself takes was measured with llama.cpp on x86-64.
"""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.engine.plan import MemoryPlan
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.machine import readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.engine.llama.metadata import Gguf, Tensor
    from edge_runtime.engine.llama.options import Options
    from edge_runtime.engine.llama.program import Device
    from edge_runtime.machine import Memory

KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
TABLE = "per_layer_token_embd"
EMBEDDING = "token_embd"

_PROGRAM = 60 << 20
_WORD = 250
"""Bytes of memory that a word of the vocabulary takes, with its merges."""
_ROWS = 24
"""Rows as wide as the model that are alive at a time for each token of a batch."""
_TOWER_ROWS = 16
_MOST_PATCHES = 10_080
"""Of a picture of 1120 soft tokens."""
_GPU_RESERVE = 512 << 20
"""For the driver, and for what others may take while the model loads."""
_REPACKED = {"Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "MXFP4"}
_REPACKED_ON_ARM = {*_REPACKED, "Q5_K", "Q8_0"}
"""Types that llama.cpp lays out anew for the CPU when it loads them."""
_SMALL_SHARED = 9 << 30
"""Boards whose processor and graphics share this much memory or less keep the towers off the graphics."""


@dataclass(frozen=True)
class Parts:
    """A model's files, as far as memory goes."""

    model: Gguf
    projector: Gguf | None = None
    drafter: Gguf | None = None

    @property
    def size(self) -> int:
        """Bytes that are read at the start."""
        files = [self.model, *filter(None, (self.projector, self.drafter))]
        return sum(_sum(file.tensors) for file in files) - _table(self.model)

    @property
    def layers(self) -> int:
        """Layers of the decoder."""
        return int(self.model.get("block_count", 0))


def plan(parts: Parts, options: Options) -> MemoryPlan:
    """Bytes of main memory that a server with `options` takes, on the CPU alone.

    Per-layer embeddings that are read row by row are `tables`: they stay in the file, and no part of the total.
    """
    model = parts.model
    tables = _table(model) if options.lazy else 0
    weights = _sum(model.tensors) - tables
    if not any(tensor.name == "output.weight" for tensor in model.tensors):
        weights += _repacked_head(model)
    width = int(model.get("embedding_length", 0))
    activations = _PROGRAM + _WORD * _words(model) + 4 * options.batch * _ROWS * width
    activations += 4 * _words(model) * 8  # logits, and the copy that is sorted
    towers = 0
    if parts.projector is not None:
        wide = max(int(parts.projector.get(f"{kind}.embedding_length", 0)) for kind in ("vision", "audio"))
        towers = _sum(parts.projector.tensors) + 4 * _MOST_PATCHES * _TOWER_ROWS * wide
    kv = cache_bytes(model, options.context, options.kv_type, options.batch)
    if parts.drafter is not None:
        weights += _sum(parts.drafter.tensors)
        if parts.drafter.architecture != "gemma4-assistant":  # which reads the model's own cache
            kv += cache_bytes(parts.drafter, options.context, options.kv_type, options.batch)
    return MemoryPlan(weights=weights, tables=tables, activations=activations, towers=towers, kv=kv, prefix_cache=0)


def cache_bytes(model: Gguf, context: int, kv_type: str, batch: int) -> int:
    """Bytes of keys and values: of sliding layers a window and a batch, in steps of 256; of shared layers nothing."""
    layers = int(model.get("block_count", 0)) - int(model.get("attention.shared_kv_layers", 0))
    window = int(model.get("attention.sliding_window", 0))
    sliding = _sliding(model)
    heads = model.get("attention.head_count_kv", 1)
    full = _up(context)
    total = 0.0
    for layer in range(layers):
        slides = window and sliding[layer % len(sliding)]
        tokens = min(full, _up(window + batch)) if slides else full
        suffix = "_swa" if slides and model.get("attention.key_length_swa") else ""
        usual = int(model.get("embedding_length", 0)) // max(1, _first(model.get("attention.head_count", 1)))
        width = sum(int(model.get(f"attention.{part}_length{suffix}", usual)) for part in ("key", "value"))
        total += tokens * width * (heads[layer] if isinstance(heads, list) else int(heads)) * KV_BYTES[kv_type]
    return int(total)


def fit(parts: Parts, options: Options, have: Memory, *, fixed: bool) -> tuple[Options, MemoryPlan]:
    """`options` so that they fit what is free: a smaller cache, then a shorter context, unless that is `fixed`.

    Raises:
        EdgeRuntimeError: Nothing fits; the message says what would.
    """
    tries = [options, dataclasses.replace(options, kv_type="q8_0")]
    if not fixed and options.context > 1024:
        tries += [dataclasses.replace(options, kv_type="q8_0", context=size) for size in (options.context // 2, 1024)]
    for each in tries if options.kv_type == "f16" else tries[:1]:
        found = plan(parts, each)
        if found.total <= have.available:
            return each, found
    needs = plan(parts, tries[-1])
    raise EdgeRuntimeError(
        f"{parts.model.path.name} needs {readable(needs.total)} of memory with a context of {tries[-1].context} "
        f"tokens, {readable(have.available)} are free: {_instead(have)}",
        "too_large",
    )


def place(parts: Parts, options: Options, devices: Sequence[Device], have: Memory) -> Options:
    """What goes to the graphics processors: everything, else everything but experts, else as many layers as fit."""
    if not devices or not parts.layers:
        return options
    shared = len(devices) == 1 and devices[0].total > 0.7 * have.total
    room = sum(device.free - _GPU_RESERVE for device in devices)
    if shared:
        room = min(room, have.available - _GPU_RESERVE)
    model = parts.model
    layers = _by_layer(model)
    experts = _by_layer(model, experts=True)
    kv = cache_bytes(model, options.context, options.kv_type, options.batch)
    rest = sum(_sum([tensor]) for tensor in model.tensors if not tensor.name.startswith("blk.")) - _table(model)
    work = 4 * options.batch * (_ROWS * int(model.get("embedding_length", 0)) + _words(model)) + kv
    needs = rest + work + sum(layers)
    towers = plan(parts, options).towers
    on_gpu = towers > 0 and needs + towers <= room and not (shared and have.total <= _SMALL_SHARED)
    options = dataclasses.replace(options, projector_on_gpu=on_gpu)
    if needs <= room:
        return dataclasses.replace(options, gpu_layers=parts.layers + 1)
    for count in range(1, parts.layers + 1) if sum(experts) else ():
        if needs - sum(experts[:count]) <= room:
            return dataclasses.replace(options, gpu_layers=parts.layers + 1, cpu_experts=count)
    # The last layers go first, as llama.cpp places them.
    count, used = 0, work
    while count < parts.layers and used + layers[-1 - count] <= room:
        used += layers[-1 - count]
        count += 1
    return dataclasses.replace(options, gpu_layers=count)


def _instead(have: Memory) -> str:
    from edge_runtime import recipes  # noqa: PLC0415 - only where something has gone wrong

    small = [recipe for recipe in recipes.known() if recipe.kind == "gguf" and recipe.download_bytes < have.available]
    if not small:
        return "the built-in model would fit"
    best = max(small, key=lambda recipe: recipe.download_bytes)
    return f"{best.name} ({readable(best.download_bytes)}) would fit"


def _sum(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.size for tensor in tensors)


def _table(model: Gguf) -> int:
    return _sum([tensor for tensor in model.tensors if tensor.name.startswith(TABLE)])


def _repacked_head(model: Gguf) -> int:
    """A head that is the embedding too is held twice where its type is one that llama.cpp repacks for the CPU."""
    kinds = _REPACKED_ON_ARM if platform.machine() in {"aarch64", "arm64"} else _REPACKED
    return _sum([tensor for tensor in model.tensors if tensor.name.startswith(EMBEDDING) and tensor.kind in kinds])


def _by_layer(model: Gguf, *, experts: bool = False) -> list[int]:
    """Bytes of each layer, or of its experts."""
    sizes = [0] * int(model.get("block_count", 0))
    for tensor in model.tensors:
        head, _, rest = tensor.name.removeprefix("blk.").partition(".")
        if tensor.name.startswith("blk.") and head.isdecimal() and int(head) < len(sizes):
            sizes[int(head)] += tensor.size if not experts or "_exps" in rest else 0
    return sizes


def _sliding(model: Gguf) -> list[bool]:
    """Which layers slide; the pattern may be a list, or the distance between those that do not."""
    pattern = model.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return [bool(slides) for slides in pattern] or [False]
    period = int(pattern) if pattern else 6 if model.architecture == "gemma3" else 1
    return [True] * (period - 1) + [False]


def _words(model: Gguf) -> int:
    return len(model.values.get("tokenizer.ggml.tokens", ()))


def _first(value: int | list[int]) -> int:
    return int(value[0]) if isinstance(value, list) else int(value)


def _up(tokens: int) -> int:
    return -(-tokens // 256) * 256
