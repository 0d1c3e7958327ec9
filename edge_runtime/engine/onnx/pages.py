"""Pages of mapped files, which the system keeps as long as it has room for them."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


class Pages:
    """Where a file is mapped into this process, by whomever."""

    def __init__(self, path: Path) -> None:
        """Looks for the file as it is mapped now.

        Mappings that were written to are left alone, and so is everything where /proc is not.
        """
        self._places: list[tuple[int, int]] = []
        try:
            self._madvise = ctypes.CDLL(None).madvise
            lines = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
        except (OSError, AttributeError, TypeError):
            return
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        ending, start, end = f" {path.resolve()}", 0, 0
        for line in lines:
            if found := _MAPPING.match(line):
                start, end = (int(found[1], 16), int(found[2], 16)) if line.endswith(ending) else (0, 0)
            elif end and line.split() == ["Anonymous:", "0", "kB"]:
                self._places.append((start, end - start))

    def let_go(self) -> None:
        """Takes them out of this process; what is used comes back from the system's cache."""
        for place in self._places:
            self._madvise(*place, mmap.MADV_DONTNEED)
