"""The decoder graph: embeddings in, logits out, the KV cache updated in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.bundle.shared_table import SharedTable
from edge_runtime.bundle.tables import Table
from edge_runtime.engine.onnx.chunks import cuts, window_bias
from edge_runtime.engine.onnx.kv_cache import KVCache
from edge_runtime.engine.onnx.session import open_session
from edge_runtime.gemma.image import BUDGETS
from edge_runtime.gemma.rope import rope_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.bundle.checksums import Checksums
    from edge_runtime.bundle.manifest import Manifest

CHUNK = 256
"""Tokens per prefill step: long enough for full speed, short enough to bound memory and to cancel in between."""


class Decoder:
    """One sequence at a time through `decoder_model_merged.onnx`.

    Attributes:
        cache: The sequence's keys and values; `cache.total` tokens have been seen.
        context: Tokens at most.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        context: int,
        threads: int,
        chunk: int = CHUNK,
        checksums: Checksums | None = None,
    ) -> None:
        """Opens the graph and the embedding tables of a bundle; None as checksums: the files are not checked.

        Raises:
            EdgeRuntimeError: A file is missing or damaged.
        """
        import onnxruntime as ort  # noqa: PLC0415

        self._text = manifest.geometry.text
        self._pad = manifest.geometry.pad
        self.context, self.chunk = context, chunk
        self._session = open_session(folder / names.DECODER, threads, checksums)

        def open_table(name: str) -> Table:
            return Table.open(folder / name, manifest.tables[name], checksums.pages(name) if checksums else None)

        shared = manifest.embedding
        self._embed = SharedTable.open(folder, shared) if shared else open_table(names.EMBED_TABLE)
        self._per_layer = open_table(names.PLE_TABLE) if self._text.ple_dim else None
        self._inputs = {item.name for item in self._session.get_inputs()}
        self._images: Sequence[tuple[int, int]] = ()
        largest = max(BUDGETS) if self._text.bidirectional_images else 0
        self.cache = KVCache(self._text, context, chunk, largest=largest)
        self._binding = self._session.io_binding()
        # Buffers and tables live as long as the binding: it holds their addresses.
        self._fixed: list[Any] = []
        for name, table in rope_tables(self._text, context).items():
            if name in self._inputs:
                self._bind_input(name, ort.OrtValue.ortvalue_from_numpy(table))
        for (layer, part), buffer in self.cache.buffers.items():
            value = ort.OrtValue.ortvalue_from_numpy(buffer)
            self._bind_input(names.past(layer, part), value)
            self._binding.bind_ortvalue_output(names.present(layer, part), value)
        self._logits: NDArray[np.float32] = np.empty((1, 0, self._text.vocab_size), np.float32)
        self._logits_value: Any = None

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scaled token embeddings, float32 `[n, hidden]`."""
        return self._embed.read(ids)

    def prefetch(self, ids: NDArray[np.int64]) -> None:
        """Has the disk bring what `ids` will look up, while something else is computed."""
        self._embed.prefetch(ids)
        if self._per_layer is not None:
            self._per_layer.prefetch(ids, self._text.num_own_layers * self._text.ple_dim)

    def begin(self, images: Sequence[tuple[int, int]] = ()) -> None:
        """Forgets the sequence; another begins, with images from a first position up to an end."""
        self.cache.reset()
        self._images = images if self._text.bidirectional_images else ()

    def cuts(self, count: int, chunk: int) -> Iterator[tuple[int, int]]:
        """Where the sequence's first `count` tokens may be cut into steps: runs (first, end) of `chunk` tokens.

        An image whose soft tokens see each other stays whole, even where that makes a step longer.
        """
        return cuts(count, chunk, self._images)

    def step(self, ids: NDArray[np.int64], embeddings: NDArray[np.float32], keep: int = 1) -> NDArray[np.float32]:
        """Runs the next tokens of the sequence.

        Args:
            ids: int64 `[n]`, as many as `cuts` says or fewer where no image is; the pad id where a soft token stands.
            embeddings: float32 `[n, hidden]`, soft tokens spliced in.
            keep: Give logits for the last `keep` positions.

        Returns:
            float32 `[keep, vocab]`; overwritten by the next step.
        """
        count = len(ids)
        lengths = self.cache.advance(count)
        feed: dict[str, NDArray[Any]] = {
            "inputs_embeds": np.ascontiguousarray(embeddings, np.float32)[None],
            "position_ids": np.arange(lengths.start, lengths.total, dtype=np.int64)[None],
            "num_logits_to_keep": np.array([keep], np.int64),
            "seqlens_k": np.array([lengths.total - 1], np.int32),
            "total_sequence_length": np.array(lengths.total, np.int32),
            "window_seqlens_k": np.array([lengths.resident - 1], np.int32),
            "window_total_sequence_length": np.array(lengths.resident, np.int32),
        }
        if self._text.bidirectional_images:
            feed["window_bias"] = window_bias(lengths, self._text.sliding_window, self._images)
        if self._per_layer is not None:
            own = self._text.num_own_layers * self._text.ple_dim
            # One read for both where both are wanted.
            kept = self._per_layer.read(ids[count - keep :])
            first = self._per_layer.read(ids[: count - keep], 0, own)
            feed["per_layer_inputs"] = np.concatenate([first, kept[:, :own]])[None]
            feed["per_layer_inputs_shared"] = np.ascontiguousarray(kept[:, own:])[None]
        for name, value in feed.items():
            if name in self._inputs:
                self._binding.bind_cpu_input(name, value)
        self._bind_logits(keep)
        self._session.run_with_iobinding(self._binding)
        logits: NDArray[np.float32] = self._logits[0]
        return logits

    def close(self) -> None:
        """Closes the tables and lets go of the session."""
        for table in (self._embed, self._per_layer):
            if table is not None:
                table.close()
        self._binding = self._session = self._logits_value = None
        self._fixed.clear()

    def _bind_input(self, name: str, value: Any) -> None:
        self._fixed.append(value)
        self._binding.bind_ortvalue_input(name, value)

    def _bind_logits(self, keep: int) -> None:
        if self._logits.shape[1] == keep:
            return
        import onnxruntime as ort  # noqa: PLC0415

        self._logits = np.empty((1, keep, self._text.vocab_size), np.float32)
        self._logits_value = ort.OrtValue.ortvalue_from_numpy(self._logits)
        self._binding.bind_ortvalue_output("logits", self._logits_value)
