"""The data file of a graph that is being written: what its large constants are lies in it, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAGE = 4096
_MARK = "packed"


class DataFile:
    """Constants, `onnx.TensorProto`s, on their way from one bundle's files to a file of our own."""

    def __init__(self, file: BinaryIO, source: Path) -> None:
        """Args: the file to write, and the folder that constants lie in so far."""
        self._file, self._source = file, source

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._file.tell()

    def copy(self, tensor: Any) -> None:
        """Takes a constant over as it is."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        length = int(entries["length"])
        offset = self.append(self._source / entries["location"], int(entries["offset"]), length)
        self.describe(tensor, offset, length)

    def write(self, tensor: Any, values: NDArray[Any]) -> None:
        """Makes a constant, whose type and shape are said, hold `values`."""
        offset = self._seek(values.nbytes)
        self._file.write(np.ascontiguousarray(values).data)
        self.describe(tensor, offset, values.nbytes)

    def append(self, source: Path, offset: int, length: int) -> int:
        """Copies a piece of a file to the end of ours; where it lies."""
        at = self._seek(length)
        with source.open("rb") as file:
            file.seek(offset)
            left = length
            while left:
                data = file.read(min(left, 1 << 20))
                self._file.write(data)
                left -= len(data)
        return at

    def describe(self, tensor: Any, offset: int, length: int, more: dict[str, str] | None = None) -> None:
        """Says in a constant where in our file it lies."""
        del tensor.external_data[:]
        tensor.ClearField("raw_data")
        tensor.data_location = type(tensor).EXTERNAL
        location = Path(self._file.name).name
        entries = {"location": location, "offset": str(offset), "length": str(length), **(more or {})}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        tensor.doc_string = _MARK

    @staticmethod
    def has(tensor: Any) -> bool:
        """Whether a constant lies in our file."""
        return bool(tensor.doc_string == _MARK)

    def _seek(self, length: int) -> int:
        at = self._file.tell()
        at += -at % (_PAGE if length >= _PAGE else 64)
        self._file.seek(at)
        return at
