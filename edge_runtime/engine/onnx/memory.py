"""Works out what a bundle takes before anything of it is loaded: from its manifest, sizes of files and geometry.

Every part is an upper bound. Factors were measured on x86-64, whose kernels take the most; tests hold them against what
models of several shapes really take.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edge_runtime import machine
from edge_runtime.bundle import names
from edge_runtime.engine.onnx.decoder import CHUNK, FEW, largest_step
from edge_runtime.engine.onnx.kv_cache import Layout
from edge_runtime.engine.onnx.slices import slices
from edge_runtime.engine.plan import MemoryPlan
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.image import BUDGETS, PatchGrid

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.engine.onnx.kv_cache import KVType
    from edge_runtime.gemma.geometry import TextGeometry

PREFIX_CACHE = 128 << 20
"""Bytes for states of earlier prompts and soft tokens of media, at most, where nothing else is said."""

_PROGRAM = 64 << 20
"""Python, numpy, ONNX Runtime and the graphs' nodes."""
_TOKENIZER, _TOKENIZER_READING = 7, 24
"""Bytes of memory for each of tokenizer.json: to stay, and while it is read."""
_SCALE_BYTES = {"f32": 4, "f16": 2, "i8": 1}
_SMALLEST = 512
"""Tokens of the smallest context that is worth naming."""


def plan(
    manifest: Manifest,
    *,
    context: int,
    kv_type: KVType = "fp32",
    sessions: int = 1,
    mapped: bool = False,
    budget: int | None = None,
    image_tokens: int | None = None,
) -> MemoryPlan:
    """What a bundle takes.

    Args:
        manifest: Of the bundle.
        context: Tokens of each sequence.
        kv_type: How keys and values are kept.
        sessions: Sequences that may run at a time.
        mapped: Whether weights lie packed in a file.
        budget: Bytes there are; what is kept of earlier prompts is less where that makes it fit.
        image_tokens: Soft tokens of an image at most; None: as many as are usual.
    """
    text = manifest.geometry.text
    layout = Layout(text, context, CHUNK, largest=largest_step(text), kv_type=kv_type)
    weights = packed_bytes(manifest, names.DECODER)
    tower_weights = packed_bytes(manifest, names.VISION) + packed_bytes(manifest, names.AUDIO)
    tokenizer = _size(manifest, names.TOKENIZER)
    program = _PROGRAM + _TOKENIZER * tokenizer + 4 * _rotary(text, context) + _size(manifest, names.CHECKSUMS)
    kv = sessions * (layout.nbytes + 8 * context)
    largest = max(rows * width // (slices(rows, width) if mapped else 1) for rows, width in _largest(text))
    # A matrix is packed in memory even where a file's pages then take its place.
    anyway, parts = _PROGRAM + (0 if mapped else weights), (_TOKENIZER_READING * tokenizer, largest)
    cache = min(PREFIX_CACHE, 2 * layout.saved_bytes(context) + (8 << 20))
    activations = program + step_bytes(text, context, kv_type)
    towers = tower_weights + _vision_bytes(manifest, image_tokens) + _audio_bytes(manifest)
    if budget is not None:
        cache = max(0, min(cache, budget - weights - activations - towers - kv))
    planned = MemoryPlan(
        weights=weights,
        tables=sum(min(spec.size, context * spec.row_bytes) for spec in manifest.tables.values()),
        activations=activations,
        towers=towers,
        kv=kv,
        prefix_cache=cache,
        mapped=weights + tower_weights if mapped else 0,
        loading=anyway + max(parts),
    )
    return replace(planned, at_once=anyway + sum(parts) <= planned.anonymous)


def plan_and_check(
    manifest: Manifest,
    *,
    context: int,
    kv_type: KVType,
    sessions: int,
    mapped: bool,
    budget: int | None,
    prefill: int = 0,
) -> MemoryPlan:
    """The plan, if it fits into the budget, or without one into the machine.

    Matrices for prompts, `prefill` bytes of a file, are part of it where they fit, too; without a budget, where they
    leave a quarter of the machine's memory.

    Raises:
        EdgeRuntimeError: It does not; the line says what would.
    """
    have = machine.memory().total if budget is None else budget

    def made(context: int, kv_type: KVType, sessions: int) -> MemoryPlan:
        return plan(manifest, context=context, kv_type=kv_type, sessions=sessions, mapped=mapped, budget=budget)

    def need(planned: MemoryPlan) -> int:
        return planned.anonymous if budget is None else max(planned.total, planned.loading)

    planned = made(context, kv_type, sessions)
    if need(planned) <= have:
        more = replace(planned, prefill=prefill, mapped=planned.mapped + prefill)
        room = have * 3 // 4 if budget is None else have
        return more if more.total <= room else planned
    fits: list[str] = []
    if sessions > 1 and need(made(context, kv_type, 1)) <= have:
        fits.append("one session")
    if kv_type != "int8" and need(made(context, "int8", sessions)) <= have:
        fits.append("kv_type int8")
    size = context // 2
    while size > _SMALLEST and need(made(size, kv_type, sessions)) > have:
        size //= 2
    if need(made(size, kv_type, sessions)) <= have:
        fits.append(f"a context of {size}")
    advice = f"{' or '.join(fits)} would fit" if fits else "take a smaller recipe (mobile) or model"
    whose = "this machine has" if budget is None else "the memory budget is"
    raise EdgeRuntimeError(
        f"{manifest.name} {manifest.recipe} with {context} tokens of context takes {machine.readable(need(planned))}, "
        f"{whose} {machine.readable(have)}: {advice}",
        "too_large",
    )


def image_limit(manifest: Manifest, planned: MemoryPlan, budget: int | None) -> int | None:
    """Soft tokens of an image at most, for the plan to hold; None: any number."""
    if budget is None:
        return None
    usual = _vision_bytes(manifest, None)
    rest = planned.total - planned.prefill - usual  # pages that may go
    fitting = [size for size in BUDGETS if rest + _vision_bytes(manifest, size) <= budget]
    return max([PatchGrid.budget, *fitting])


def packed_bytes(manifest: Manifest, graph: str) -> int:
    """Bytes of a graph's weights in memory, as x86-64's kernels pack them: 0 if the bundle has no such graph.

    Kernels keep two float32 for each block beside the weights, and the graph keeps its own. Towers have a byte for each
    weight where they lie in a file.
    """
    factors = [1.0]
    for form in manifest.formats.get(graph, {}):
        bits, block, scales = form.split("/")
        in_file = int(bits) / 8 + _SCALE_BYTES[scales] / int(block)
        least = 1 if graph in names.TOWERS else 0
        factors.append(max(least, int(bits) / 8 + 12 / int(block)) / in_file)
    return int(_size(manifest, names.data_file(graph)) * max(factors))


def step_bytes(text: TextGeometry, context: int, kv_type: KVType) -> int:
    """The most that a decoder's step takes while it runs."""
    tokens = max(CHUNK, largest_step(text))
    own = range(text.num_own_layers)
    mlp = max(text.mlp_widths[layer] for layer in own)
    heads = text.num_heads * max(text.head_dims)
    wide = 4 * mlp + 6 * text.hidden_size + 4 * heads + 4 * text.num_own_layers * text.ple_dim
    last = 4 * max(text.mlp_widths) + 5 * text.vocab_size
    numbers = tokens * wide + last
    if kv_type == "fp32":  # what few tokens score, in three forms at a time
        group = max(text.num_heads // text.kv_heads[layer] for layer in own)
        numbers = max(numbers, FEW * (3 * group * context + wide) + last)
    if kv_type == "fp16":  # a layer's whole cache, widened
        numbers += max(2 * context * text.kv_heads[layer] * text.head_dims[layer] for layer in own)
    if text.bidirectional_images:  # attention with a mask of its own keeps what it scores
        numbers += (text.num_heads + 2) * tokens * (text.sliding_window + tokens)
    if text.num_experts:
        numbers += 4 * tokens * text.experts_per_token * (text.hidden_size + 2 * text.expert_width)
    return 4 * numbers


def _vision_bytes(manifest: Manifest, image_tokens: int | None) -> int:
    """What the image tower takes while it runs."""
    vision = manifest.geometry.vision
    if vision is None:
        return 0
    patches = (image_tokens or PatchGrid.budget) * vision.pool_size**2
    return _size(manifest, names.data_file(names.VISION)) // 2 + patches * 4 * (
        4 * vision.mlp_width + 6 * vision.hidden_size
    )


def _audio_bytes(manifest: Manifest) -> int:
    """What the audio tower takes while it runs over the longest clip: most of it before frames become tokens."""
    from edge_runtime.gemma.audio import TOKEN_STRIDE, LogMel  # noqa: PLC0415

    audio = manifest.geometry.audio
    if audio is None:
        return 0
    wide = 2 * TOKEN_STRIDE * (audio.mel_bins // 2) * audio.conv_channels[0] + 12 * audio.hidden_size
    return _size(manifest, names.data_file(names.AUDIO)) // 8 + LogMel.max_tokens * 4 * wide


def _rotary(text: TextGeometry, context: int) -> int:
    """Numbers in the tables of cosines and sines."""
    return 2 * context * sum({text.rotated_pairs(kind) for kind in set(text.layer_types)})


def _largest(text: TextGeometry) -> list[tuple[int, int]]:
    """Shapes of the largest matrices."""
    rows = (text.vocab_size, max(text.mlp_widths), text.num_layers * text.ple_dim)
    return [(count, text.hidden_size) for count in rows]


def _size(manifest: Manifest, name: str) -> int:
    return manifest.files[name].size if name in manifest.files else 0
