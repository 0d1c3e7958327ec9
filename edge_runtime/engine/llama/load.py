"""From a path to an engine: what lies beside a GGUF, what it is able to do, and a server that fits the box."""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge_runtime.engine.llama.chat import Abilities
from edge_runtime.engine.llama.engine import LlamaEngine
from edge_runtime.engine.llama.memory import KV_BYTES, TABLE, Parts, fit, place, plan
from edge_runtime.engine.llama.metadata import Gguf, read_gguf
from edge_runtime.engine.llama.options import DRAFT, MTP, Options
from edge_runtime.engine.llama.program import find_program
from edge_runtime.engine.llama.server import Server, architecture_problem
from edge_runtime.engine.protocol import Info
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.image import PatchGrid
from edge_runtime.machine import Memory, memory, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

CONTEXT = 4096
AUDIO_S = 30.0
"""What Gemma 4's audio towers take at a time."""
SUFFIX = ".gguf"

BATCH, PICTURE_BATCH = 256, 1152

_ONE_WAY_WIDTHS = (1536, 2560)
"""Of E2B and E4B, by which llama.cpp tells that a picture's tokens see only those before them."""
_GEMMA4_TOWERS = ("gemma4v", "gemma4uv")
_PATCH, _POOL = 16, 3
_OUR_KINDS = {"fp32": "f32", "fp16": "f16", "int8": "q8_0"}
_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p"}


@dataclass(frozen=True)
class Choices:
    """What a user may say of a GGUF; None or False: found out.

    Attributes:
        server: The `llama-server` to run.
        projector: The GGUF of the towers.
        drafter: The GGUF of a drafter.
        kv_type: How the cache is stored: one of `KV_BYTES`.
        gpu_layers: Layers on the graphics processor.
        memory_budget: Bytes to stay within, if fewer than are free.
        alone: Text only: no towers, no drafter.
    """

    server: Path | None = None
    projector: Path | None = None
    drafter: Path | None = None
    kv_type: str | None = None
    gpu_layers: int | None = None
    memory_budget: int | None = None
    alone: bool = False


def open_gguf(
    path: Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    choices: Choices | None = None,
    progress: Callable[[float], None] | None = None,
) -> LlamaEngine:
    """Starts a server for a GGUF file; closing the engine ends it.

    Args:
        path: The file, or the first of a split model.
        context: Tokens of prompt and answer together; None: 4096, or fewer where the model or the memory wants it.
        threads: To compute with; None: the cores that this process may use.
        choices: What the user has decided.
        progress: Called with the share that is loaded.

    Raises:
        EdgeRuntimeError: One line: no such file, damaged, no model of words, does not fit, no llama.cpp.
    """
    started, choices = time.perf_counter(), choices or Choices()
    parts = find_parts(path, choices)
    limit = int(parts.model.get("context_length", CONTEXT))
    if context is not None and not 1 < context <= limit:
        raise EdgeRuntimeError(f"context is {context}; this model takes 2 to {limit} tokens")
    if threads is not None and threads < 1:
        raise EdgeRuntimeError(f"threads is {threads}; it must be 1 or more")
    program = find_program(choices.server)
    have = memory()
    if choices.memory_budget is not None:
        have = Memory(min(have.total, choices.memory_budget), min(have.available, choices.memory_budget))
    options = Options(
        model=parts.model.path,
        context=context or min(CONTEXT, limit),
        threads=threads or len(os.sched_getaffinity(0)),
        projector=parts.projector.path if parts.projector else None,
        drafter=parts.drafter.path if parts.drafter else None,
        draft_kind=MTP if parts.drafter and parts.drafter.architecture == "gemma4-assistant" else DRAFT,
        kv_type=check_kv_type(choices.kv_type or "f16"),
        batch=_batch(parts),
        lazy=any(tensor.name.startswith(TABLE) for tensor in parts.model.tensors),
    )
    options = place(parts, options, program.devices() if choices.gpu_layers is None else (), have)
    if choices.gpu_layers is not None:
        options = _with_layers(options, choices.gpu_layers)
    if options.gpu_layers:
        planned = plan(parts, options)
    else:
        options, planned = fit(parts, options, have, fixed=context is not None)
    log.info("%s through %s: %s", path.name, program, _summary(options, parts, have))
    server = Server(program, options, size=parts.size, progress=progress)
    tokens, abilities = tuple(parts.model.control_tokens()), find_abilities(parts.projector)
    heard = [*(["image"] if abilities.image else []), *(["audio"] if abilities.audio_s else [])]
    return LlamaEngine(
        server,
        Info(name=parts.model.name, modalities=["text", *heard], context=options.context),
        abilities,
        control_tokens=tokens,
        defaults=_defaults(parts.model),
        template="tokenizer.chat_template" in parts.model.values,
        memory=planned,
        load_s=time.perf_counter() - started,
    )


def needed(path: Path, context: int) -> int:
    """Bytes of memory that a GGUF takes when it runs, with its towers.

    Raises:
        EdgeRuntimeError: As `find_parts`.
    """
    parts = find_parts(path)
    lazy = any(tensor.name.startswith(TABLE) for tensor in parts.model.tensors)
    return plan(parts, Options(path, context, 1, lazy=lazy, batch=_batch(parts))).total


def find_parts(path: Path, choices: Choices | None = None) -> Parts:
    """The model and what belongs to it: named by the user, else lying beside it.

    Raises:
        EdgeRuntimeError: A file is missing, damaged, or not what it should be.
    """
    choices = choices or Choices()
    model = read_gguf(path)
    if model.architecture == "clip":
        raise EdgeRuntimeError(f"{path} holds only the towers of a model; give the model's own file")
    if model.architecture == "gemma4-assistant":
        raise EdgeRuntimeError(f"{path} is a drafter; give the model's own file")
    if "diffusion" in model.architecture:
        raise EdgeRuntimeError(f"{path}: {architecture_problem(model.architecture, 'llama.cpp')}")
    if not model.get("block_count"):
        raise EdgeRuntimeError(f"{path} holds no language model ({model.architecture or 'nothing that it names'})")
    if choices.alone:
        return Parts(model)
    projector = _named(choices.projector, "clip") or next(_beside(model, "clip"), None)
    drafter = _named(choices.drafter, None) or next(_beside(model, "gemma4-assistant"), None)
    return Parts(model, projector, drafter)


def find_abilities(projector: Gguf | None) -> Abilities:
    """What a model with these towers takes."""
    if projector is None:
        return Abilities()
    image, audio = (bool(projector.values.get(f"clip.has_{kind}_encoder")) for kind in ("vision", "audio"))
    grid = None
    if image and projector.values.get("clip.vision.projector_type") in _GEMMA4_TOWERS:
        pool = int(projector.values.get("clip.vision.projector.scale_factor", _POOL))
        grid = PatchGrid(patch=int(projector.values.get("clip.vision.patch_size", _PATCH)), pool=pool)
    return Abilities(image=image, audio_s=AUDIO_S if audio else 0.0, grid=grid)


def check_kv_type(kind: str) -> str:
    """llama.cpp's name of a kind of cache; ours are known too.

    Raises:
        EdgeRuntimeError: There is none.
    """
    kind = _OUR_KINDS.get(kind, kind)
    if kind not in KV_BYTES:
        raise EdgeRuntimeError(f"a cache of {kind!r} is not known; there are {', '.join(KV_BYTES)}")
    return kind


def _batch(parts: Parts) -> int:
    """Tokens at a time. Where the tokens of a picture see one another, llama.cpp takes no more for it than a batch."""
    one_way = int(parts.model.get("embedding_length", 0)) in _ONE_WAY_WIDTHS
    return BATCH if one_way or parts.projector is None else PICTURE_BATCH


def _named(path: Path | None, architecture: str | None) -> Gguf | None:
    if path is None:
        return None
    found = read_gguf(path)
    if architecture is not None and found.architecture != architecture:
        raise EdgeRuntimeError(f"{path} holds no towers ({found.architecture})")
    return found


def _beside(model: Gguf, architecture: str) -> Iterator[Gguf]:
    """GGUF files of an architecture in the model's folder that fit it, the best name and the widest type first.

    Several models may share a folder: what fits in width and shares most of its name belongs.
    """
    width = int(model.get("embedding_length", 0))
    found = []
    for path in sorted(model.path.parent.glob(f"*{SUFFIX}")):
        if path == model.path:
            continue
        try:
            other = read_gguf(path)
        except EdgeRuntimeError:
            continue
        if other.architecture != architecture:
            continue
        key = "embedding_length_out" if architecture == "gemma4-assistant" else "vision.projection_dim"
        fits = other.get(key) or other.get("audio.projection_dim")
        if fits == width:
            found.append(other)
    wanted = _words_of(model.path)
    # Towers in bfloat16 answer better than in fewer bits.
    found.sort(key=lambda other: (-len(wanted & _words_of(other.path)), "bf16" not in other.path.stem.lower()))
    yield from found


def _words_of(path: Path) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", path.stem.lower())) - {"gguf", "mmproj", "it"}


def _with_layers(options: Options, layers: int) -> Options:
    return replace(options, gpu_layers=layers, projector_on_gpu=layers > 0)


def _defaults(model: Gguf) -> dict[str, float]:
    """How the file's maker wants tokens to be chosen."""
    values = model.values
    return {ours: values[key] for ours, name in _SAMPLING.items() if (key := f"general.sampling.{name}") in values}


def _summary(options: Options, parts: Parts, have: Memory) -> str:
    said = [f"{readable(parts.size)} of {readable(have.available)} free", f"context {options.context}"]
    said += [f"cache {options.kv_type}", f"{options.threads} threads"]
    if options.gpu_layers:
        said.append(f"{min(options.gpu_layers, parts.layers)} of {parts.layers} layers on the graphics processor")
    if options.cpu_experts:
        said.append(f"experts of {options.cpu_experts} layers in main memory")
    said.append(f"towers {options.projector.name}" if options.projector else "text only")
    if options.drafter:
        said.append(f"drafter {options.drafter.name}")
    return ", ".join(said)
