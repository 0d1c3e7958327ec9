"""A reference's logits in a file: made once where the model fits in memory, compared with anywhere.

A line of JSON, then for every prompt 16 bytes of its digest, the number of tokens as uint32 and their logits as float32
`[tokens, vocab]`; all little-endian.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.evaluation.exchanges import Exchange
    from edge_runtime.evaluation.kld import Source

_FORMAT = "edge-runtime reference logits 1"
_DIGEST = 16
_LENGTH = 4


def save(
    path: Path,
    source: Source,
    exchanges: Sequence[Exchange],
    weights: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Asks `source` everything and writes its logits to `path`, wholly or not at all.

    Args:
        path: The file to make; one that is there is replaced.
        source: The reference.
        exchanges: From `read_exchanges`.
        weights: How many the reference's decoder has, for sizes per weight.
        progress: Called with (done, total) before the first and after each.

    Raises:
        EdgeRuntimeError: A prompt cannot be run.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    taken = [exchange for exchange in exchanges if exchange.modality in source.modalities]
    try:
        with temporary.open("wb") as file:
            for done, exchange in enumerate(taken):
                if progress:
                    progress(done, len(taken))
                logits = source.logits(exchange)
                if not done:
                    header = {"format": _FORMAT, "name": source.name, "vocab": logits.shape[1], "weights": weights}
                    file.write(json.dumps({**header, "modalities": list(source.modalities)}).encode() + b"\n")
                file.write(exchange.digest() + len(logits).to_bytes(_LENGTH, "little"))
                file.write(np.ascontiguousarray(logits, "<f4").tobytes())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if progress:
        progress(len(taken), len(taken))


class SavedSource:
    """A file that `save` wrote. A context manager: leaving it closes the file.

    Attributes:
        weights: How many the reference's decoder has.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path` and finds the prompts in it.

        Raises:
            EdgeRuntimeError: There is no such file, it is another kind of file, or it was cut short.
        """
        self._path = path
        with contextlib.ExitStack() as stack:
            try:
                self._file: BinaryIO = stack.enter_context(path.open("rb"))
                self._header = _header(self._file)
            except OSError as error:
                raise EdgeRuntimeError(f"{path}: {error.strerror}") from None
            except (ValueError, KeyError, TypeError):
                raise EdgeRuntimeError(f"{path} holds no reference logits (eval kld --save-reference)") from None
            self.weights: int = self._header["weights"]
            self._places = self._index()
            self._open = stack.pop_all()

    @property
    def name(self) -> str:
        """See Source."""
        return str(self._header["name"])

    @property
    def modalities(self) -> Sequence[str]:
        """See Source."""
        return list(self._header["modalities"])

    def logits(self, exchange: Exchange) -> NDArray[np.float32]:
        """See Source.

        Raises:
            EdgeRuntimeError: The file has no such prompt.
        """
        place = self._places.get(exchange.digest())
        if place is None:
            raise EdgeRuntimeError(f"{exchange.where}: not among the prompts of {self._path}")
        offset, count = place
        vocab = int(self._header["vocab"])
        self._file.seek(offset)
        return np.frombuffer(self._file.read(4 * count * vocab), "<f4").reshape(count, vocab)

    def _index(self) -> dict[bytes, tuple[int, int]]:
        """Offset and number of tokens of each prompt, by digest."""
        file, row = self._file, 4 * int(self._header["vocab"])
        size = os.fstat(file.fileno()).st_size
        places: dict[bytes, tuple[int, int]] = {}
        while head := file.read(_DIGEST + _LENGTH):
            count = int.from_bytes(head[_DIGEST:], "little")
            end = file.tell() + count * row
            if len(head) < _DIGEST + _LENGTH or end > size:
                raise EdgeRuntimeError(f"{self._path} is cut short")
            places[head[:_DIGEST]] = file.tell(), count
            file.seek(end)
        return places

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _header(file: BinaryIO) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(file.readline(10_000))
    if header["format"] != _FORMAT or int(header["vocab"]) < 1 or not isinstance(header["modalities"], list):
        raise ValueError
    int(header["weights"])
    return header
