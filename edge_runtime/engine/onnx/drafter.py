"""The drafter of a bundle (gemma4_assistant): guesses from the decoder's last state and its keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.engine.onnx.opening import open_graph
from edge_runtime.gemma.geometry import FULL, SLIDING
from edge_runtime.gemma.rope import rope_tables

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.bundle.checksums import Checksums
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.engine.onnx.decoder import Decoder

STATE = "last_hidden_state"
"""The decoder's output that the drafter goes on from."""


class Drafter:
    """Opens when first asked."""

    def __init__(
        self, folder: Path, manifest: Manifest, *, context: int, threads: int, checksums: Checksums | None
    ) -> None:
        self._folder, self._threads, self._checksums = folder, threads, checksums
        self._text = manifest.geometry.text
        self._rope = rope_tables(self._text, context)
        self._session: Any = None
        self._wanted: set[str] = set()

    def guess(self, decoder: Decoder, token: int, state: NDArray[np.float32], count: int) -> list[int]:
        """Guesses at what follows a token that was chosen but not read yet.

        Args:
            decoder: The target, with all that was read before the token.
            token: The token.
            state: The target's last hidden state after what it read, float32 `[hidden]`.
            count: Guesses to make.
        """
        if self._session is None:
            self._session = open_graph(self._folder, names.DRAFTER, self._threads, self._checksums)
            self._wanted = {item.name for item in self._session.get_inputs()}
        cache = decoder.cache
        feed: dict[str, Any] = {
            "position_ids": np.array([[cache.total]], np.int64),
            "seqlens_k": np.array([cache.total - 1], np.int32),
            "total_sequence_length": np.array(cache.total, np.int32),
            "window_seqlens_k": np.array([cache.resident - 1], np.int32),
            "window_total_sequence_length": np.array(cache.resident, np.int32),
            **self._rope,
        }
        for kind in (SLIDING, FULL):
            layer = self._text.last_own_layer(kind)
            for part in names.PARTS:
                feed[f"shared_kv.{kind}.{part}"] = cache.buffers[layer, part]
        feed = {name: value for name, value in feed.items() if name in self._wanted}
        guesses = []
        for _ in range(count):
            embedding = decoder.embed(np.array([token], np.int64))[0]
            feed["inputs_embeds"] = np.concatenate([embedding, state])[None, None]
            logits, projected = self._session.run(["logits", "projected_state"], feed)
            token, state = int(logits[0, 0].argmax()), projected[0, 0]
            guesses.append(token)
        return guesses
