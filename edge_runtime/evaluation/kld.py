"""How much a bundle's distributions differ from those of the checkpoint that it was made from.

Both models read the same prompts, and after each the answer that its case expects (teacher forcing). At every token of
the answer, its end among them, KL(reference || candidate) over the whole vocabulary says how much of what the
reference knows about the next token is lost: 0 if the two are the same. The tokens of prompts do not count: a chat
model is never asked to write them. The reference is the checkpoint exported without rounding (recipe fp32).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.evaluation.divergence import Divergence, diverge, join
from edge_runtime.evaluation.exchanges import MODALITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Reading: TypeAlias = "tuple[Prompt, Sequence[NDArray[np.float32]], Sequence[int]]"

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.evaluation.exchanges import Exchange
    from edge_runtime.gemma.chat import Prompt


class Source(Protocol):
    """A model's logits, wherever they come from."""

    @property
    def name(self) -> str:
        """For reports."""

    @property
    def modalities(self) -> Sequence[str]:
        """What it takes: "text", "image", "audio"."""

    def logits(self, exchange: Exchange) -> NDArray[np.float32]:
        """Logits at each token of the answer, its end among them: float32 `[tokens, vocab]`."""


class Reader(Protocol):
    """Makes of an exchange what a decoder takes."""

    def read(self, exchange: Exchange) -> Reading:
        """Prompt, soft tokens for each of its spans, and the answer's ids."""


class BundleSource:
    """A bundle, loaded. A context manager: leaving it closes the bundle."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int | None = None,
        name: str | None = None,
        reader: Reader | None = None,
        kv_type: str | None = None,
        cache: Path | None = None,
    ) -> None:
        """Loads a bundle.

        Args:
            folder: The bundle.
            threads: To compute with.
            name: For reports; None: name and recipe of the bundle.
            reader: Takes in pictures and sounds in place of the bundle's own towers, so that only decoders differ.
            kv_type: How it keeps keys and values; None: fp32.
            cache: See `OnnxEngine`; with one, prompts are read as they are where it answers.

        Raises:
            EdgeRuntimeError: It is no bundle, or a damaged one.
        """
        from edge_runtime.engine.onnx.engine import OnnxEngine  # noqa: PLC0415 - takes time: only where a model runs

        self.manifest = read_manifest(folder)
        self.name = name or f"{self.manifest.name} {self.manifest.recipe}"
        self._engine = OnnxEngine(folder, threads=threads, kv_type=kv_type, cache=cache)
        self._reader = reader or self

    @property
    def modalities(self) -> Sequence[str]:
        """See Source."""
        return self._engine.info["modalities"]

    def logits(self, exchange: Exchange) -> NDArray[np.float32]:
        """See Source."""
        prompt, soft, answer = self._reader.read(exchange)
        return self._engine.forcing.logits(prompt, soft, answer)

    def watch(self, values: Sequence[str], told: Callable[[dict[str, NDArray[np.float32]]], None]) -> None:
        """Has `logits` tell these outputs of the decoder's graph too; see `Forcing.watch`."""
        self._engine.forcing.watch(values, told)

    def read(self, exchange: Exchange) -> Reading:
        """See Reader.

        Raises:
            EdgeRuntimeError: The prompt cannot be made.
        """
        from edge_runtime.engine.protocol import Request  # noqa: PLC0415

        request = Request(messages=exchange.messages, tools=exchange.tools, max_tokens=1)
        try:
            prepared, answer = self._engine.prepare(request), self._engine.forcing.answer_ids(request, exchange.answer)
            return prepared.prompt, self._engine.forcing.soft_tokens(prepared), answer
        except EdgeRuntimeError as error:
            raise EdgeRuntimeError(f"{exchange.where}: {error}", error.code) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()


@dataclass(frozen=True)
class Size:
    """What a bundle takes on disk.

    Attributes:
        total: Bytes of all its files.
        text: Bytes of the decoder's weights and its embedding tables: all that a question in words needs.
    """

    total: int
    text: int

    @classmethod
    def of(cls, manifest: Manifest) -> Size:
        """Measures a bundle by its manifest."""
        text = {names.data_file(names.DECODER), *manifest.tables}
        sizes = {name: entry.size for name, entry in manifest.files.items()}
        return cls(sum(sizes.values()), sum(size for name, size in sizes.items() if name in text))

    def bits_per_weight(self, weights: int) -> float:
        """Bits of `text` for each of the decoder's `weights`."""
        return 8 * self.text / weights


def count_weights(fp32: Manifest) -> int:
    """Weights of the decoder and its embeddings, by the size of a bundle that keeps four bytes of each.

    The token embedding counts once: it is the output head too.
    """
    kept = (names.data_file(names.DECODER), names.PLE_TABLE)
    return sum(entry.size for name, entry in fp32.files.items() if name in kept) // 4


@dataclass(frozen=True)
class Report:
    """The outcome.

    Attributes:
        modalities: "text", "image" and "audio", as far as there were prompts, each with its tokens' divergence.
        exchanges: How many prompts were asked.
        seconds: How long it took.
    """

    modalities: dict[str, Divergence]
    exchanges: int
    seconds: float

    @property
    def overall(self) -> Divergence:
        """All tokens."""
        return join(list(self.modalities.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        rows = {**self.modalities, "overall": self.overall}
        return {
            "prompts": self.exchanges,
            "seconds": round(self.seconds, 3),
            "kld": {name: row.to_dict() for name, row in rows.items()},
        }


def kld(
    reference: Source,
    candidate: Source,
    exchanges: Sequence[Exchange],
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Compares two models on `exchanges`; those of a kind that the candidate does not take are left out.

    Example:
        with BundleSource(Path("fp32")) as reference, BundleSource(Path("int4")) as candidate:
            print(kld(reference, candidate, read_exchanges(Path("heldout"))).overall.mean)

    Args:
        reference: What is right.
        candidate: What is judged.
        exchanges: From `read_exchanges`.
        progress: Called with (done, total) before the first and after each.

    Raises:
        EdgeRuntimeError: A prompt cannot be run, the models have different vocabularies, or the candidate gives
            logits that are no numbers.
    """
    begun = time.perf_counter()
    taken = [exchange for exchange in exchanges if exchange.modality in candidate.modalities]
    if not taken:
        raise EdgeRuntimeError(f"there is no prompt that {candidate.name} takes")
    parts: dict[str, list[Divergence]] = {}
    for done, exchange in enumerate(taken):
        if progress:
            progress(done, len(taken))
        right, found = reference.logits(exchange), candidate.logits(exchange)
        if right.shape != found.shape:
            shapes = " and ".join(f"{len(part)} tokens of {part.shape[1]}" for part in (right, found))
            raise EdgeRuntimeError(f"{exchange.where}: the models do not match: their answers are {shapes}")
        if not np.isfinite(found).all():
            raise EdgeRuntimeError(f"{exchange.where}: {candidate.name} gives logits that are no numbers")
        parts.setdefault(exchange.modality, []).append(diverge(right, found))
    if progress:
        progress(len(taken), len(taken))
    rows = {str(name): join(parts[name]) for name in MODALITIES if name in parts}
    return Report(rows, len(taken), time.perf_counter() - begun)
