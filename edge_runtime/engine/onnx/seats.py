"""Sequences that requests take turns in, and what of them need not be read again."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.engine.onnx.prefix import Saved, common
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.decoder import Decoder
    from edge_runtime.engine.onnx.kv_cache import Window
    from edge_runtime.engine.onnx.prefix import Lru
    from edge_runtime.engine.onnx.shelf import Shelf

WORTH = 64
"""Tokens that are worth a copy of a state rather than being read again."""


class Seat:
    """A decoder, and the keys of what it has read.

    Attributes:
        decoder: The decoder.
        start: Tokens of the present request that it need not read.
        stops: Positions where reading pauses for the state to be saved, in order.
    """

    def __init__(self, decoder: Decoder, number: int) -> None:
        self.decoder, self.number = decoder, number
        self.start = 0
        self.stops: list[int] = []
        self.busy = False
        self.used = 0
        self.marks: list[tuple[str, int, int]] = []
        self._keys = np.zeros(decoder.context, np.int64)
        self._changes = -1

    @property
    def keys(self) -> NDArray[np.int64]:
        """Keys of the tokens in the decoder; none where something else used it meanwhile."""
        known = self._changes == self.decoder.cache.changes
        return self._keys[: self.decoder.cache.total if known else 0]

    def step(
        self, ids: NDArray[np.int64], keys: NDArray[np.int64], embeddings: NDArray[np.float32], keep: int = 1
    ) -> NDArray[np.float32]:
        """As `Decoder.step`; `keys` are those of the tokens."""
        first = self.decoder.cache.total
        logits = self.decoder.step(ids, embeddings, keep)
        self._keys[first : first + len(keys)] = keys
        self.remember()
        return logits

    def go_back(self, count: int) -> None:
        """Forgets the last `count` tokens, which were read in the last step."""
        self.decoder.cache.go_back(self.decoder.cache.total - count)
        self.remember()

    def remember(self) -> None:
        """What is in the decoder now is what `keys` says."""
        self._changes = self.decoder.cache.changes


class Seats:
    """All sequences of a model: each request takes one, the one that has most of its beginning."""

    def __init__(self, decoders: Sequence[Decoder], kept: Lru, shelf: Shelf | None = None) -> None:
        """Nobody sits yet.

        Args:
            decoders: One for each request that may run at a time.
            kept: Where states go that a seat has no room for.
            shelf: Where states of system turns outlive the process.
        """
        self._seats = [Seat(decoder, number) for number, decoder in enumerate(decoders)]
        self._kept, self._shelf = kept, shelf
        self._lock = threading.Lock()
        self._clock = itertools.count(1)
        self._window = decoders[0].cache.layout.window

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def busy(self) -> int:
        """Requests that are running."""
        return sum(seat.busy for seat in self._seats)

    @contextlib.contextmanager
    def take(
        self, keys: NDArray[np.int64], images: Sequence[tuple[int, int]] = (), stop: int = 0, *, reuse: bool = True
    ) -> Iterator[Seat]:
        """A seat for a request, ready to read `keys` from its `start` on.

        Args:
            keys: Of the whole prompt.
            images: First position and end of its images.
            stop: A position where a state is worth saving for good; 0: none.
            reuse: Whether what was read before may be made use of.

        Raises:
            EdgeRuntimeError: `busy`.
        """
        with self._lock:
            free = [seat for seat in self._seats if not seat.busy]
            if not free:
                raise EdgeRuntimeError("the model is answering another request", "busy")
            seat = self._prepare(free, keys, images, stop, reuse=reuse)
            seat.busy = True
        try:
            yield seat
        finally:
            with self._lock:
                seat.busy, seat.used = False, next(self._clock)

    def mark(self, seat: Seat) -> None:
        """Keeps what sliding layers hold, so that the seat can come back to this position."""
        cache = seat.decoder.cache
        key = ("mark", seat.number, cache.total)
        self._kept.make_room(cache.layout.window_bytes())
        window = cache.keep_window()
        self._kept.put(key, window, window.nbytes)
        seat.marks = [mark for mark in seat.marks if mark != key] + [key]

    def save(self, seat: Seat, *, for_good: bool = False) -> None:
        """Keeps a copy of the seat's state; `for_good`: on the disk, too."""
        cache = seat.decoder.cache
        nbytes = cache.layout.saved_bytes(cache.total) + seat.keys.nbytes
        if nbytes > self._kept.budget:
            return
        self._kept.make_room(nbytes)
        state = Saved(seat.keys.copy(), cache.keep_window(), cache.keep_full())
        self._kept.put(state.name, state, state.nbytes)
        if for_good and self._shelf is not None:
            self._shelf.put(state)

    def _prepare(
        self, free: list[Seat], keys: NDArray[np.int64], images: Sequence[tuple[int, int]], stop: int, *, reuse: bool
    ) -> Seat:
        limit = len(keys) - 1  # the last token is always read: its logits are wanted
        start, longest = 0, 0
        best: tuple[Seat, Window | None] | Saved | None = None
        for source, known in self._sources(free) if reuse else ():
            same = _before_images(min(common(known, keys), limit), images)
            span = source.window if isinstance(source, Saved) else source[1] or source[0].decoder.cache.span
            reached = span.reach(same, self._window)
            longest = max(longest, same)
            if reached > start:
                start, best = reached, source
        if reuse and self._shelf is not None and (better := self._shelf.find(keys[:limit], start + WORTH)) is not None:
            self._kept.put(better.name, better, better.nbytes)
            start, best = len(better.keys), better
        if isinstance(best, tuple):
            seat, window = best
            self._rescue(seat, start)
            if seat.decoder.cache.total != start:
                seat.decoder.cache.go_back(start, window)
        else:
            seat = min(free, key=lambda seat: (len(seat.keys), seat.used))
            self._rescue(seat, 0)
            self._forget_marks(seat, 0)  # they are of what was here before
            seat.decoder.cache.reset()
            if best is not None:
                seat.decoder.cache.put_back(start, best.window, best.full)
                seat._keys[:start] = best.keys[:start]  # noqa: SLF001
        seat.remember()
        seat.decoder.see(images)
        self._forget_marks(seat, start)
        branch = longest if longest - start >= WORTH else 0
        seat.start = start
        seat.stops = sorted({at for at in (stop, branch) if start < at < len(keys)})
        return seat

    def _sources(self, free: list[Seat]) -> Iterator[tuple[tuple[Seat, Window | None] | Saved, NDArray[np.int64]]]:
        """Where a sequence could go on, with the keys of what is there."""
        for seat in free:
            yield (seat, None), seat.keys
            for key in seat.marks:
                window = self._kept.get(key)
                if window is not None and window.end <= len(seat.keys):
                    yield (seat, window), seat.keys
        for state in self._kept.things(Saved):
            yield state, state.keys

    def _rescue(self, seat: Seat, start: int) -> None:
        """Keeps a copy of what is about to be overwritten, if it is long enough."""
        if len(seat.keys) - start >= WORTH:
            self.save(seat)

    def _forget_marks(self, seat: Seat, start: int) -> None:
        for key in seat.marks:
            if key[2] > start:
                self._kept.drop(key)
        seat.marks = [key for key in seat.marks if key[2] <= start]


class Turns:
    """Lets threads compute one after the other, in the order in which they asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for the turn."""
        mine = threading.Event()
        with self._lock:
            self._waiting.append(mine)
            if len(self._waiting) == 1:
                mine.set()
        try:
            mine.wait()
            yield
        finally:
            with self._lock:
                first = self._waiting[0] is mine
                self._waiting.remove(mine)
                if first and self._waiting:
                    self._waiting[0].set()


def _before_images(position: int, images: Sequence[tuple[int, int]]) -> int:
    """The position, or the beginning of the image that it would cut."""
    return next((first for first, end in images if first < position < end), position)
