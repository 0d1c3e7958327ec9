"""Pages of mapped files, which the system keeps as long as it has room for them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) ")

_EVERY = 0.3  # seconds: more often makes loading no smaller, and each time all mappings are looked through


class Pages:
    """Where a file is mapped into this process, by whomever."""

    def __init__(self, path: Path) -> None:
        """Looks for the file as it is mapped now.

        Mappings that were written to are left alone, and so is everything where /proc is not.
        """
        self._places: list[tuple[int, int, int]] = []
        try:
            self._madvise = ctypes.CDLL(None).madvise
            lines = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
        except (OSError, AttributeError, TypeError):
            return
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        ending, place = f" {path.resolve()}", None
        for line in lines:
            if found := _MAPPING.match(line):
                start, end, offset = (int(number, 16) for number in found.groups())
                place = (start, end - start, offset) if line.endswith(ending) else None
            elif place and line.split() == ["Anonymous:", "0", "kB"]:
                self._places.append(place)

    def let_go(self, before: int | None = None) -> None:
        """Takes them out of this process; what is used comes back from the system's cache.

        Args:
            before: Those before this byte of the file only.
        """
        for start, size, offset in self._places:
            length = size if before is None else min(size, max(0, before - offset))
            self._madvise(start, length // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_DONTNEED)


@contextlib.contextmanager
def passing(path: Path) -> Iterator[None]:
    """Lets a file's pages go, again and again, while it is read once from its beginning to its end."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(_EVERY):
            Pages(path).let_go()

    worker = threading.Thread(target=work, name="pages", daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()
        Pages(path).let_go()
