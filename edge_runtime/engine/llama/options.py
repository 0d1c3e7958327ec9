"""How a llama.cpp server is to run, whichever program it is: what we set, and llama-server's words for it.

What is not for the caller to choose is here too: no cache of prompts in memory and no checkpoints (each may take
hundreds of megabytes), one request at a time, nothing fetched, no web page, no origin that a browser may come from.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

NO_ORIGIN = "https://nobody.invalid"
"""A page's origin that no page has. llama.cpp answers every origin where none is named."""
MTP = "draft-mtp"
DRAFT = "draft-simple"


@dataclass(frozen=True)
class Options:
    """What a server is started with.

    Attributes:
        model: The GGUF file.
        context: Tokens of prompt and answer together.
        threads: To compute with.
        projector: The GGUF of the towers.
        drafter: A GGUF that drafts tokens.
        draft_kind: `MTP` for Gemma 4's assistants, else `DRAFT`.
        kv_type: How the cache is stored: f32, f16, q8_0 or q4_0.
        batch: Tokens of a prompt that are computed at a time.
        gpu_layers: Layers that a graphics processor holds.
        cpu_experts: Layers, from the first, whose experts stay in main memory all the same.
        projector_on_gpu: Whether the towers run there too.
        lazy: Read per-layer embeddings from the file row by row.
        mapped: Map the file, where not enough memory is free to hold it; else it is read.
    """

    model: Path
    context: int
    threads: int
    projector: Path | None = None
    drafter: Path | None = None
    draft_kind: str = DRAFT
    kv_type: str = "f16"
    batch: int = 256
    gpu_layers: int = 0
    cpu_experts: int = 0
    projector_on_gpu: bool = False
    lazy: bool = False
    mapped: bool = False

    def arguments(self, port: int) -> list[str]:
        """llama-server's arguments; the API key goes through the environment, where other users cannot read it."""
        given: dict[str, object] = {
            "--host": "127.0.0.1",
            "--port": port,
            "--model": self.model,
            "--ctx-size": self.context,
            "--threads": self.threads,
            "--threads-http": 4,
            "--parallel": 1,
            "--batch-size": self.batch,
            "--ubatch-size": self.batch,
            "--cache-type-k": self.kv_type,
            "--cache-type-v": self.kv_type,
            "--n-gpu-layers": self.gpu_layers,
            "--fit": "off",
            "--ctx-checkpoints": 0,
            "--cache-ram": 0,
            "--load-mode": "mmap" if self.mapped else "none",
            "--lazy-mode": "on" if self.lazy else "off",
            "--cors-origins": NO_ORIGIN,
        }
        flags = ["--jinja", "--no-ui", "--no-slots", "--no-cors-credentials", "--offline", "--log-prefix"]
        if self.cpu_experts:
            given["--n-cpu-moe"] = self.cpu_experts
        if self.projector is not None:
            # Pictures come in their final size: see chat.picture.
            given |= {"--mmproj": self.projector, "--image-min-tokens": 1}
            flags += [] if self.projector_on_gpu else ["--no-mmproj-offload"]
        if self.drafter is not None:
            given |= {"--model-draft": self.drafter, "--spec-type": self.draft_kind}
        return [*(str(word) for pair in given.items() for word in pair), *flags]

    def plain(self) -> dict[str, Any]:
        """Plain types, for a child of our own."""
        fields = dataclasses.asdict(self)
        return {name: str(value) if name in _PATHS and value is not None else value for name, value in fields.items()}


_PATHS = ("model", "projector", "drafter")
