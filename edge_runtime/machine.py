"""What this machine has: memory, by the kernel and by the limits of the control groups that we run in; free ports."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])i?)?B?", re.IGNORECASE)
_FILES = {
    # Of a group, by version: its limit, what it uses, and the part of that which is cache and is given back on demand.
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@dataclass(frozen=True)
class Memory:
    """Bytes that this process may use."""

    total: int
    """The machine's, or the tightest limit of a control group."""
    available: int
    """What of it is free now, or would be if caches were dropped."""


def memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> Memory:
    """Reads /proc/meminfo and the limits of control groups (version 1 or 2) above this process."""
    lines = (line.split() for line in (proc / "meminfo").read_text(encoding="ascii").splitlines())
    kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines}
    machine = total = 1024 * kilobytes["MemTotal"]
    available = 1024 * kilobytes["MemAvailable"]
    for version, folder in _groups(proc, cgroups):
        limit_file, usage_file, cache_key = _FILES[version]
        limit = _number(folder / limit_file)
        if limit is not None and limit < machine:
            used = (_number(folder / usage_file) or 0) - _stat(folder / "memory.stat").get(cache_key, 0)
            total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, available)


def readable(size: float) -> str:
    """A number of bytes as people write it: "2.9 GB", "16 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size:.0f} bytes"


def parse_size(text: str) -> int:
    """The number of bytes that "4G", "1500M" or "2.5 GiB" mean; K, M, G and T are powers of 1024, as for systemd.

    Raises:
        ValueError: it means none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size, such as 4G or 1500M")
    return int(float(match[1]) * 1024 ** " KMGT".index((match[2] or " ").upper()))


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[int, Path]]:
    """Version and folder of the memory groups above this process, the nearest first."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, base = 2, cgroups
        elif "memory" in controllers.split(","):
            version, base = 1, cgroups / "memory"
        else:
            continue
        # Inside a container the path may be that of the host: then only the top, which is the container's own, is here.
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(base) and group.is_dir():
                yield version, group


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file or it says "max"."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _stat(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) == 2}


def free_port() -> int:
    """A TCP port of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
