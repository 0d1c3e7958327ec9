"""The decoder graph: embeddings in, logits out, the KV cache updated in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.bundle.shared_table import SharedTable
from edge_runtime.bundle.tables import Table
from edge_runtime.engine.onnx.bound import Bound
from edge_runtime.engine.onnx.chunks import cut, cuts, kept_bias, window_bias
from edge_runtime.engine.onnx.kv_cache import KVCache, Layout
from edge_runtime.engine.onnx.opening import open_graph
from edge_runtime.engine.onnx.session import CPU, SPIN_US
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.image import BUDGETS
from edge_runtime.gemma.rope import rope_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.bundle.checksums import Checksums
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.engine.onnx.kv_cache import KVType, Lengths
    from edge_runtime.engine.onnx.packed import PackedGraphs
    from edge_runtime.gemma.geometry import TextGeometry

CHUNK = 256
"""Tokens per prefill step: long enough for full speed, short enough to bound memory and to cancel in between."""


FEW = 8
"""Tokens of a step, at most, that are taken as few; see `export.few`."""

MANY = 24
"""Tokens whose logits are not wanted from which on the graph for prompts is quicker."""


class _Core:
    """What the sequences of a model share: the session, its tables."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        context: int,
        threads: int,
        checksums: Checksums | None,
        kv_type: KVType,
        packed: PackedGraphs | None,
        providers: Sequence[str],
        *,
        prefill: bool,
        spin_us: int,
    ) -> None:
        import onnxruntime as ort  # noqa: PLC0415

        self.text, self.kv_type = manifest.geometry.text, kv_type
        self.elsewhere = tuple(providers) != CPU
        self.session = open_graph(
            folder, names.DECODER, threads, checksums, packed, kv_type, self.text, providers, spin_us
        )
        self.prefill = packed.open(names.PREFILL, threads, checksums, kv_type) if packed and prefill else None
        both = packed if self.prefill else None
        self.pages = {graph: both.pages(graph) for graph in (names.DECODER, names.PREFILL)} if both else {}
        self.own_bytes = both.own_bytes() if both else 0
        self.sequences = 1

        def open_table(name: str) -> Table:
            return Table(folder / name, manifest.tables[name], checksums.pages(name) if checksums else None)

        shared = manifest.embedding
        self.embed = SharedTable(folder, shared) if shared else open_table(names.EMBED_TABLE)
        self.per_layer = open_table(names.PLE_TABLE) if self.text.ple_dim else None
        self.rotary = {}
        for name, table in rope_tables(self.text, Layout(self.text, context, CHUNK).rows).items():
            turned = table.astype(np.float16) if kv_type == "fp16" else table
            self.rotary[name] = ort.OrtValue.ortvalue_from_numpy(turned)

    def close(self) -> None:
        """Closes the tables and lets go of the session."""
        for table in (self.embed, self.per_layer):
            if table is not None:
                table.close()
        self.session = self.prefill = None
        self.pages.clear()
        self.rotary.clear()


class Decoder:
    """One sequence at a time through `decoder_model_merged.onnx`.

    Attributes:
        cache: The sequence's keys and values; `cache.total` tokens have been seen.
        context: Tokens at most.
        chunk: Tokens of a step at most, unless an image is longer that must stay whole.
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
        kv_type: KVType = "fp32",
        packed: PackedGraphs | None = None,
        providers: Sequence[str] = CPU,
        prefill: bool = False,
        spin_us: int = SPIN_US,
    ) -> None:
        """Opens the graph and the embedding tables of a bundle.

        Args:
            folder: The bundle.
            manifest: Its manifest.
            context: Tokens at most.
            threads: To compute with.
            chunk: Tokens per prefill step.
            checksums: The bundle's; None: the files are not checked.
            kv_type: How keys and values are kept.
            packed: Where weights lie as this machine's kernels want them; None: they are packed into memory.
            providers: See `session.available`.
            prefill: Whether prompts are read with a graph of their own, where weights lie packed; see `prefill_graph`.
            spin_us: See `session.SPIN_US`.

        Raises:
            EdgeRuntimeError: A file is missing or damaged.
        """
        self._core = _Core(
            folder, manifest, context, threads, checksums, kv_type, packed, providers, prefill=prefill, spin_us=spin_us
        )
        self.context, self.chunk = context, chunk
        self._begin()

    def another(self) -> Decoder:
        """One more sequence through the same graph, which stays open until this one is closed."""
        other: Decoder = object.__new__(Decoder)
        self._core.sequences += 1
        other._core, other.context, other.chunk = self._core, self.context, self.chunk
        other._begin()
        return other

    def _begin(self) -> None:
        core = self._core
        self._text, self._embed, self._per_layer = core.text, core.embed, core.per_layer
        self._images: Sequence[tuple[int, int]] = ()
        self.cache = KVCache(
            self._text, self.context, self.chunk, largest=largest_step(self._text), kv_type=core.kv_type
        )
        self._whole = Bound(core.session, core.rotary, self.cache, elsewhere=core.elsewhere)
        self._prefill = Bound(core.prefill, core.rotary, self.cache, arena=True) if core.prefill else None
        self._before = [
            (name, layer, rows)
            for (layer, part), buffer in self.cache.buffers.items()
            for head, rows in enumerate(buffer[0])
            if (name := names.before(layer, part, head)) in self._whole.inputs
        ]
        for name, _, rows in self._before:  # steps of many tokens do not look at them
            self._whole.binding.bind_cpu_input(name, rows[:1])
        self._logits: NDArray[np.float32] = np.empty((1, 0, self._text.vocab_size), np.float32)
        self._all_logits, self._logits_value = self._logits, None
        self._watching: Sequence[str] = ()

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
        self.see(images)

    def see(self, images: Sequence[tuple[int, int]]) -> None:
        """Says where the images of the sequence are, in what is still to come as well."""
        self._images = images if self._text.bidirectional_images else ()

    def cut(self, start: int, count: int, chunk: int) -> int:
        """Where the step that begins at `start` ends; the rest as in `cuts`."""
        return cut(start, count, chunk, self._images)

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
            keep: Give logits for the last `keep` positions, `most_kept` at most; 0: none are wanted.

        Returns:
            float32 `[keep, vocab]`, if `keep` is 0 of any length; overwritten by the next step.
        """
        if not 0 <= keep <= self.most_kept:
            raise EdgeRuntimeError(f"logits of {keep} tokens at a step; 1 to {self.most_kept} fit", "internal")
        first = len(ids) - keep
        if self._prefill is not None and first >= MANY and not self._splits(self.cache.total + first):
            # Its matrices are enough, unless another sequence is waiting for its turn.
            if self._core.sequences == 1:
                self._core.pages[names.DECODER].let_go(self._core.own_bytes)
            self._fill(self._prefill, ids[:first], embeddings[:first])
            ids, embeddings = ids[first:], embeddings[first:]
            if keep:  # the prompt is at its end
                self._core.pages[names.PREFILL].let_go()
        return self._run(ids, embeddings, max(1, keep)) if len(ids) else self._logits[0]

    def _splits(self, position: int) -> bool:
        """Whether a position is inside an image that must stay whole."""
        return any(first < position < end for first, end in self._images)

    def _fill(self, graph: Bound, ids: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Keys and values of tokens whose logits nobody wants."""
        feed = self._feed(self.cache.advance(len(ids)), embeddings)
        if self._per_layer is not None:
            own = self._text.num_own_layers * self._text.ple_dim
            feed["per_layer_inputs"] = self._per_layer.read(ids, 0, own)[None]
        graph.run(feed)

    def _run(self, ids: NDArray[np.int64], embeddings: NDArray[np.float32], keep: int) -> NDArray[np.float32]:
        count, lengths = len(ids), self.cache.advance(len(ids))
        feed = self._feed(lengths, embeddings)
        feed["num_logits_to_keep"] = np.array([keep], np.int64)
        feed.update(self._sights(lengths, count, keep))
        if self._per_layer is not None:
            own = self._text.num_own_layers * self._text.ple_dim
            # One read for both where both are wanted.
            kept = self._per_layer.read(ids[count - keep :])
            first = self._per_layer.read(ids[: count - keep], 0, own)
            feed["per_layer_inputs"] = np.concatenate([first, kept[:, :own]])[None]
            feed["per_layer_inputs_shared"] = np.ascontiguousarray(kept[:, own:])[None]
        self._bind_logits(keep)
        for output in self._watching:
            self._whole.binding.bind_output(output)  # anew, for its length may be another
        self._whole.run(feed)
        logits: NDArray[np.float32] = self._logits[0]
        return logits

    def _feed(self, lengths: Lengths, embeddings: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """What all graphs take of a step."""
        feed: dict[str, NDArray[Any]] = {
            "inputs_embeds": np.ascontiguousarray(embeddings, np.float32)[None],
            "position_ids": np.arange(lengths.start, lengths.total, dtype=np.int64)[None],
            "seqlens_k": np.array([lengths.total - 1], np.int32),
            "total_sequence_length": np.array(lengths.total, np.int32),
            "window_seqlens_k": np.array([lengths.resident - 1], np.int32),
            "window_total_sequence_length": np.array(lengths.resident, np.int32),
        }
        if self._text.bidirectional_images:
            feed["window_bias"] = window_bias(lengths, self._text.sliding_window, self._images)
        return feed

    def _sights(self, lengths: Lengths, count: int, keep: int) -> dict[str, NDArray[Any]]:
        """What the last `keep` of `count` tokens see; where these are few, that is bound, too."""
        window = self._text.sliding_window
        few = bool(self._before) and keep == count <= FEW and lengths.start > 0
        least = 0 if few else 1 + keep * self.cache.layout.group
        sights = {
            "kept_": kept_bias(lengths, keep, least),
            "kept_window_": kept_bias(lengths, keep, least, window, self._images),
        }
        if few:
            sights["kept_window_"] = np.ascontiguousarray(sights["kept_window_"][:, 1 - window - count :])
            for name, layer, rows in self._before:
                full = self._text.is_full(layer)
                end = (lengths.total if full else lengths.resident) - count
                self._whole.binding.bind_cpu_input(name, rows[0 if full else max(0, end + 1 - window) : end])
        found: dict[str, NDArray[Any]] = {"few_tokens": np.array(few)}
        for prefix, sight in sights.items():
            found[f"{prefix}bias"] = sight
            found[f"{prefix}seqlens_k"] = np.array([sight.shape[1] - 1], np.int32)
            found[f"{prefix}total_sequence_length"] = np.array(sight.shape[1], np.int32)
        return found

    @property
    def most_kept(self) -> int:
        """Of how many tokens a step can give logits."""
        return self.cache.layout.most_kept

    def watch(self, values: Sequence[str]) -> None:
        """Has every further step keep these outputs of the graph in `watched`, `[n, width]`; call it before the first.

        For calibration: graphs as they are exported have no such outputs.
        """
        self._watching = values
        for output in values:
            self._whole.binding.bind_output(output)

    @property
    def watched(self) -> dict[str, NDArray[np.float32]]:
        """What the last step gave for the outputs that are watched."""
        first = self._whole.outputs_bound  # outputs come in the order in which they were bound
        found = self._whole.binding.get_outputs()[first : first + len(self._watching)]
        return {name: value.numpy()[0] for name, value in zip(self._watching, found, strict=True)}

    def close(self) -> None:
        """Closes the tables and lets go of the session, for all sequences."""
        self._core.close()
        self._whole.close()
        self._prefill = self._logits_value = None

    def _bind_logits(self, keep: int) -> None:
        if self._logits.shape[1] == keep:
            return
        import onnxruntime as ort  # noqa: PLC0415

        if self._all_logits.shape[1] < keep:
            self._all_logits = np.empty((1, keep, self._text.vocab_size), np.float32)
        self._logits = self._all_logits[:, :keep]
        self._logits_value = ort.OrtValue.ortvalue_from_numpy(self._logits)
        self._whole.binding.bind_ortvalue_output("logits", self._logits_value)


def largest_step(text: TextGeometry) -> int:
    """Tokens that a step may rarely have beyond the chunk: those of an image that must stay whole; 0: none."""
    return max(BUDGETS) if text.bidirectional_images else 0
