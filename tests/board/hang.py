"""Stops one thread of a process, and only that one, until this script is ended: `hang.py PID THREAD_NAME`.

ptrace(2), PTRACE_SEIZE and PTRACE_INTERRUPT. Needs no library beside Python's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

SEIZE, INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    tasks = Path(f"/proc/{sys.argv[1]}/task").iterdir()
    (task,) = [int(task.name) for task in tasks if (task / "comm").read_text().strip() == sys.argv[2]]
    for request in (SEIZE, INTERRUPT):
        if libc.ptrace(request, task, None, None) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")
    print("stopped", flush=True)
    with contextlib.suppress(ChildProcessError):
        while True:  # a death must be taken note of, else the process does not go
            os.waitpid(-1, WALL)


if __name__ == "__main__":
    main()
