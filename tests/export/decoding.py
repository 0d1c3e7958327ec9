"""A minimal engine for tests: one decoder session, windowed buffers moved as the engine does, any chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from edge_runtime.bundle import names
from edge_runtime.bundle.shared_table import SharedTable
from edge_runtime.bundle.tables import Table
from edge_runtime.engine.onnx.session import session_options
from edge_runtime.gemma.rope import rope_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edge_runtime.bundle.manifest import Manifest


def session(path: Path) -> Any:
    return ort.InferenceSession(str(path), session_options(1), providers=["CPUExecutionProvider"])


class Runner:
    """Feeds token chunks; `step(ids, keep)` gives logits [keep, V] and last hidden states [keep, H].

    `watch`: outputs of the graph that each step puts into `watched` too. `few`: steps of how many tokens, at most, are
    taken as few; the default leaves long ones for the other way.
    """

    watch: Sequence[str] = ()
    few: int = 4
    watched: Mapping[str, Any]

    def __init__(self, bundle: Path, manifest: Manifest, *, capacity: int = 256, chunk: int = 16) -> None:
        self.text = manifest.geometry.text
        self.pad = manifest.geometry.pad
        self.session = session(bundle / names.DECODER)
        self.inputs = {value.name for value in self.session.get_inputs()}
        self.embed: Table | SharedTable
        if manifest.embedding:
            self.embed = SharedTable(bundle, manifest.embedding)
        else:
            self.embed = Table(bundle / names.EMBED_TABLE, manifest.tables[names.EMBED_TABLE])
        self.ple = None
        if self.text.ple_dim:
            self.ple = Table(bundle / names.PLE_TABLE, manifest.tables[names.PLE_TABLE])
        self.rope = rope_tables(self.text, capacity)
        self.window_capacity = self.text.sliding_window + chunk
        self.total = self.resident = 0
        self.caches = {}
        for layer in range(self.text.num_own_layers):
            rows = capacity if self.text.is_full(layer) else self.window_capacity
            rows = max(rows, chunk * self.text.num_heads + 1)
            shape = (1, self.text.kv_heads[layer], rows, self.text.head_dims[layer])
            for part in ("key", "value"):
                # Whatever lies past the filled rows must not matter.
                self.caches[layer, part] = ort.OrtValue.ortvalue_from_numpy(np.full(shape, 1e3, np.float32))

    def _make_room(self, count: int) -> None:
        if self.resident + count > self.window_capacity:
            keep = min(self.resident, self.text.sliding_window - 1)
            for (layer, _), cache in self.caches.items():
                if not self.text.is_full(layer):
                    rows = cache.numpy()
                    rows[:, :, :keep] = rows[:, :, self.resident - keep : self.resident].copy()
            self.resident = keep

    def step(self, ids: Any, keep: int = 1, embeds: Any = None, ple_ids: Any = None) -> tuple[Any, Any]:
        ids = np.asarray(ids, np.int64)
        count = len(ids)
        self._make_room(count)
        positions = np.arange(self.total, self.total + count, dtype=np.int64)[None]
        self.total += count
        self.resident += count
        feed: dict[str, Any] = {
            "inputs_embeds": (self.embed.read(ids) if embeds is None else embeds)[None],
            "position_ids": positions,
            "num_logits_to_keep": np.array([keep], np.int64),
            **self.rope,
            **self.lengths(),
            **self.sights(keep, count),
        }
        if self.ple:
            ple_ids = ids if ple_ids is None else ple_ids
            cut = self.text.num_own_layers * self.text.ple_dim
            feed["per_layer_inputs"] = self.ple.read(ple_ids, 0, cut)[None]
            if self.text.num_shared_layers:
                feed["per_layer_inputs_shared"] = self.ple.read(ple_ids[count - keep :], cut)[None]
        binding = self.session.io_binding()
        for name, value in feed.items():
            if name in self.inputs:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for (layer, part), cache in self.caches.items():
            binding.bind_ortvalue_input(names.past(layer, part), cache)
        binding.bind_output("logits")
        binding.bind_output("last_hidden_state")
        for (layer, part), cache in self.caches.items():
            binding.bind_ortvalue_output(names.present(layer, part), cache)
        for name in self.watch:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        logits, hidden = outputs[:2]
        self.watched = {name: outputs[2 + len(self.caches) + at].numpy() for at, name in enumerate(self.watch)}
        return logits.numpy()[0].copy(), hidden.numpy()[0].copy()

    def sights(self, keep: int, count: int) -> dict[str, Any]:
        """What the last `keep` of `count` tokens see; keys that are not there are hidden."""
        few = keep == count <= self.few and self.total > count
        least = 0 if few else 1 + keep * self.text.num_heads
        resident = min(self.resident, self.text.sliding_window - 1 + count) if few else self.resident
        tokens = np.arange(self.total - keep, self.total)[:, None]
        found: dict[str, Any] = {"few_tokens": np.array(few)}
        for (layer, part), cache in self.caches.items():
            end, known = (self.total, self.total) if self.text.is_full(layer) else (self.resident, resident)
            for head, rows in enumerate(cache.numpy()[0]):
                found[names.before(layer, part, head)] = rows[end - known : end - count] if few else rows[:1]
        for prefix, known in (("kept_", self.total), ("kept_window_", resident)):
            keys = self.total - known + np.arange(max(known, least))
            seen = (keys <= tokens) & ((prefix == "kept_") | (keys > tokens - self.text.sliding_window))
            found[f"{prefix}bias"] = np.where(seen, 0, -1e9).astype(np.float32)
            found[f"{prefix}seqlens_k"] = np.array([len(keys) - 1], np.int32)
            found[f"{prefix}total_sequence_length"] = np.array(len(keys), np.int32)
        return found

    def lengths(self) -> dict[str, Any]:
        return {
            "seqlens_k": np.array([self.total - 1], np.int32),
            "total_sequence_length": np.array(self.total, np.int32),
            "window_seqlens_k": np.array([self.resident - 1], np.int32),
            "window_total_sequence_length": np.array(self.resident, np.int32),
        }
