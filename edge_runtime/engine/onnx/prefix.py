"""What is worth keeping between requests: states of sequences and soft tokens of media, in one budget of bytes.

A sequence is known by a key for each token: its id, or for a soft token a negative number from what its image or sound
contains. Two sequences with the same first keys have the same state there.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.kv_cache import Window
    from edge_runtime.gemma.chat import Prompt


_T = TypeVar("_T")


def token_keys(prompt: Prompt, digests: Sequence[bytes]) -> NDArray[np.int64]:
    """The key of each token, int64 `[n]`; `digests` are those of the contents of the prompt's spans, in order."""
    keys = np.array(prompt.ids, np.int64)
    for span, digest in zip(prompt.spans, digests, strict=True):
        base = int.from_bytes(digest[:7], "little")
        keys[span.start : span.start + span.count] = -1 - base - np.arange(span.count)
    return keys


def content_digest(*arrays: NDArray[Any]) -> bytes:
    """16 bytes that say what prepared media contain."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(str((array.dtype, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.digest()


def common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many first keys two sequences have in common."""
    count = min(len(a), len(b))
    different = np.flatnonzero(a[:count] != b[:count])
    return int(different[0]) if len(different) else count


@dataclass(frozen=True)
class Saved:
    """A sequence that may go on from its end, or a little before.

    Attributes:
        keys: int64 `[tokens]`.
        window: Rows of sliding layers.
        full: Rows of full layers, `[kv_heads, tokens, head_dim]` each.
    """

    keys: NDArray[np.int64]
    window: Window
    full: tuple[NDArray[Any], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return self.keys.nbytes + self.window.nbytes + sum(rows.nbytes for rows in self.full)

    @property
    def name(self) -> str:
        """Differs between sequences."""
        return content_digest(self.keys).hex()


class Lru:
    """Keeps things within a budget; the one longest unused makes room. Safe to use from several threads."""

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self._things: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: Hashable, thing: Any, nbytes: int) -> None:
        """Keeps a thing, in the place of one with the same key; what is larger than the budget is not kept."""
        with self._lock:
            self._drop(key)
            if nbytes > self.budget:
                return
            while self.used + nbytes > self.budget:
                self._drop(next(iter(self._things)))
            self._things[key] = thing, nbytes
            self.used += nbytes

    def get(self, key: Hashable) -> Any:
        """The thing, which counts as used now; None if it is not there."""
        with self._lock:
            if key not in self._things:
                return None
            self._things.move_to_end(key)
            return self._things[key][0]

    def drop(self, key: Hashable) -> None:
        """Keeps a thing no longer."""
        with self._lock:
            self._drop(key)

    def make_room(self, nbytes: int) -> None:
        """Lets things go until as many bytes are free, so that what is about to be made never stands beside them."""
        with self._lock:
            while self._things and self.used + nbytes > self.budget:
                self._drop(next(iter(self._things)))

    def things(self, kind: type[_T]) -> list[_T]:
        """All things of one kind; none of them counts as used."""
        with self._lock:
            return [thing for thing, _ in self._things.values() if isinstance(thing, kind)]

    def _drop(self, key: Hashable) -> None:
        _, nbytes = self._things.pop(key, (None, 0))
        self.used -= nbytes
