from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.machine import Memory, memory, readable

if TYPE_CHECKING:
    from pathlib import Path


def machine(folder: Path, cgroup: str, files: dict[str, Any]) -> tuple[Path, Path]:
    """A /proc with 8 GB, 6 of them free, and a /sys/fs/cgroup."""
    proc, groups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 8000000 kB\nMemFree: 1000000 kB\nMemAvailable: 6000000 kB\nHugePages: 0\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    groups.mkdir()
    for name, text in files.items():
        path = groups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return proc, groups


FREE = Memory(8_192_000_000, 6_144_000_000)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {}, FREE),
        ("0::/\n", {"memory.max": "max"}, FREE),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": 2**63 - 4096}, FREE),
        # A limit above the group that we are in counts too, and cache is not lost.
        (
            "0::/box/job\n",
            {
                "box/memory.max": 2_000_000_000,
                "box/memory.current": 1_500_000_000,
                "box/memory.stat": "anon 1\ninactive_file 300000000",
                "box/job/memory.max": "max",
            },
            Memory(2_000_000_000, 800_000_000),
        ),
        (
            "5:cpu,memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": 3_000_000_000,
                "memory/a/memory.usage_in_bytes": 1_000_000_000,
                "memory/a/memory.stat": "total_inactive_file 0",
            },
            Memory(3_000_000_000, 2_000_000_000),
        ),
        # In a container the path is the host's; the limit lies at the top.
        (
            "0::/docker/123\n",
            {"memory.max": 1_000_000_000, "memory.current": 1_200_000_000},
            Memory(1_000_000_000, 0),
        ),
    ],
)
def test_the_tightest_limit_counts(tmp_path, cgroup, files, expected):
    assert memory(*machine(tmp_path, cgroup, files)) == expected


def test_this_machine():
    here = memory()
    assert 10e6 < here.available <= here.total


def test_sizes_are_readable():
    assert [readable(n) for n in (12, 16_052_000, 10_279_000_000)] == ["12 bytes", "16 MB", "10.3 GB"]
