"""What a GGUF file says of itself: its values, its tensors and their sizes. Only the head of the file is read.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The gguf package reads it
too, but brings four others along.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAGIC = b"GGUF"
CONTROL = 3
"""Type of a token that stands for no text."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SKIPPED = ("tokenizer.ggml.merges", "tokenizer.ggml.scores")
_MOST = 1 << 24
"""No list in a sound file is longer."""
# Of each tensor type: name, weights in a block, bytes of a block.
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    39: ("MXFP4", 32, 17),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor: its shape as GGUF has it (the fastest dimension first), its type's name, its bytes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int


@dataclass(frozen=True)
class Gguf:
    """The head of a file, or of all the files that a split model is in.

    Attributes:
        path: The file, the first of a split model.
        values: Every value but the merges and scores of the tokenizer.
        tensors: Every tensor.
        size: Bytes of the file or files.
    """

    path: Path
    values: dict[str, Any] = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)
    size: int

    @property
    def architecture(self) -> str:
        """Such as "gemma4", "gemma4-assistant" or "clip"."""
        return str(self.values.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture: `get("block_count")` is that of "gemma4.block_count"."""
        return self.values.get(f"{self.architecture}.{key}", default)

    @property
    def name(self) -> str:
        """What the model is called: by the file, where the maker has not said."""
        return str(self.values.get("general.name") or self.path.stem)

    def control_tokens(self) -> list[str]:
        """Tokens that frame turns, calls and media: those of the type control, and what looks like them."""
        words: Sequence[str] = self.values.get("tokenizer.ggml.tokens", ())
        kinds: Sequence[int] = self.values.get("tokenizer.ggml.token_type", ())
        framed = re.compile(r"<\|[^<>|]+>|<[^<>|]+\|>|<\|\"\|>")
        paired = zip(words, kinds, strict=False)
        found = [word for word, kind in paired if word and (kind == CONTROL or framed.fullmatch(word))]
        return [word for word in found if not word.isspace()]


def read_gguf(path: Path) -> Gguf:
    """Reads the head of a GGUF file; of a split model, those of all its files.

    Raises:
        EdgeRuntimeError: There is no such file, it is no GGUF, it is cut off, or a part of a split model is missing.
    """
    first = _read(path)
    count = int(first.values.get("split.count", 0))
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})", path.stem)
    if count < 2 or match is None:
        return first
    if int(match[2]) != 1:
        raise EdgeRuntimeError(
            f"{path} is a part of a split model: give its first file, {match[1]}-00001-of-{match[3]}"
        )
    parts = [first, *(_read(path.with_stem(f"{match[1]}-{i:05}-of-{count:05}")) for i in range(2, count + 1))]
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    return Gguf(path, first.values, tensors, sum(part.size for part in parts))


def _read(path: Path) -> Gguf:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            known = file.read(4) == MAGIC
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                values, tensors, end = _Cursor(data).head() if known else ({}, (), 0)
    except (IndexError, KeyError, UnicodeDecodeError, ValueError, struct.error):
        raise EdgeRuntimeError(f"{path} is damaged: its head cannot be read") from None
    except OSError as error:
        raise EdgeRuntimeError(f"{path}: {error.strerror or error}") from None
    if not known:
        raise EdgeRuntimeError(f"{path} is no GGUF file")
    if end > size:
        raise EdgeRuntimeError(f"{path} is damaged: {end - size:,} of its {end:,} bytes are missing")
    return Gguf(path, values, tensors, size)


class _Cursor:
    """Reads on from the magic."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4

    def head(self) -> tuple[dict[str, Any], tuple[Tensor, ...], int]:
        """Values, tensors, and where the last tensor ends in the file."""
        (version,) = self._unpack("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        tensor_count, value_count = self._unpack("QQ")
        if max(tensor_count, value_count) > _MOST:
            raise ValueError("too many entries")
        values = {}
        for _ in range(value_count):
            key = self._text()
            (kind,) = self._unpack("I")
            values[key] = self._value(kind, wanted=key not in _SKIPPED)
        placed = [self._tensor() for _ in range(tensor_count)]
        alignment = int(values.get("general.alignment", 32))
        start = -(-self._at // alignment) * alignment
        end = max((start + offset + tensor.size for tensor, offset in placed), default=start)
        return values, tuple(tensor for tensor, _ in placed), end

    def _unpack(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return found

    def _text(self) -> str:
        (length,) = self._unpack("Q")
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("a text runs over the end")
        return self._data[start : self._at].decode("utf-8", errors="replace")

    def _value(self, kind: int, *, wanted: bool = True) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._unpack(_SCALARS[kind])[0]
        item, count = self._unpack("IQ")
        if count > _MOST:
            raise ValueError("a list is too long")
        if item in _SCALARS:
            form = f"{count}{_SCALARS[item]}"
            if wanted:
                return list(self._unpack(form))
            self._at += struct.calcsize(f"<{form}")
            return None
        if wanted:
            return [self._value(item) for _ in range(count)]
        for _ in range(count):  # texts: over them without making them
            self._at += 8 + int.from_bytes(self._data[self._at : self._at + 8], "little")
        return None

    def _tensor(self) -> tuple[Tensor, int]:
        name = self._text()
        (dimensions,) = self._unpack("I")
        if dimensions > 4:
            raise ValueError("a tensor has too many dimensions")
        shape = self._unpack(f"{dimensions}Q")
        kind, offset = self._unpack("IQ")
        weights = 1
        for count in shape:
            weights *= count
        # A type that is newer than this table: half a byte a weight is the least that is usual.
        name_of_kind, block, size = _TYPES.get(kind, (f"type {kind}", 2, 1))
        return Tensor(name, shape, name_of_kind, -(-weights // block) * size), offset
