"""Which llama.cpp server this box has: a `llama-server` that is named or on PATH, else the one inside xllamacpp."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.errors import EdgeRuntimeError

VARIABLE = "EDGE_RUNTIME_LLAMA__SERVER"
"""Environment variable that names the program where no setting does."""
PACKAGE = "xllamacpp"
OLDEST = (2026, 10)
"""Of the package: the first with everything that Options names."""

_PROBE_S = 30
_CHILD = Path(__file__).with_name("child.py")
# What came last into llama-server of what we need.
_NEEDED = ("--lazy-mode", "--load-mode", "--cors-origins", "--ctx-checkpoints", "--spec-type", "--image-min-tokens")
_DEVICE = re.compile(r"^\s+(\w+): (.*) \((\d+) MiB, (\d+) MiB free\)", re.MULTILINE)


@dataclass(frozen=True)
class Device:
    """A graphics processor: its name, its bytes, and those that are free."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Program:
    """A server that can be started.

    Attributes:
        path: The `llama-server`, or None for the package.
        version: Its build, or the package's version.
    """

    path: Path | None
    version: str

    def __str__(self) -> str:
        return f"{self.path} ({self.version})" if self.path else f"{PACKAGE} {self.version}"

    def command(self, arguments: list[str]) -> list[str]:
        """What to run; `arguments` are for a `llama-server` only."""
        own = [sys.executable, "-P", str(_CHILD), str(os.getpid())]
        return [*own, str(self.path), *arguments] if self.path else own

    def devices(self) -> list[Device]:
        """Graphics processors that it can compute on."""
        if self.path is None:
            return []
        found = _DEVICE.findall(_ask(self.path, "--list-devices"))
        return [Device(text.strip(), int(total) << 20, int(free) << 20) for _, text, total, free in found]


def find_program(named: Path | None = None) -> Program:
    """The server to use.

    Args:
        named: A `llama-server` that the settings name; None: that of the environment, on PATH, or the package.

    Raises:
        EdgeRuntimeError: There is none, it cannot be run, or it is too old.
    """
    if named is None and (given := os.environ.get(VARIABLE)):
        named = Path(given)
    if named is not None and not (named.is_file() and os.access(named, os.X_OK)):
        raise EdgeRuntimeError(f"{named} is no program (it should be a llama-server)")
    if named is None and (found := shutil.which("llama-server")):
        named = Path(found)
    if named is not None:
        return Program(named.resolve(), _version_of(named.resolve()))
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise EdgeRuntimeError(
            "GGUF files need llama.cpp: pip install edge-runtime[gguf], or put a llama-server on PATH "
            "(deploy/build-llama-server.sh builds one)"
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise EdgeRuntimeError(f"{PACKAGE} {version} is too old: pip install --upgrade edge-runtime[gguf]")
    return Program(None, version)


def describe(named: Path | None = None) -> str:
    """One line on the server that would be used, for people.

    Raises:
        EdgeRuntimeError: As in `find_program`.
    """
    program = find_program(named)
    devices = ", ".join(device.name for device in program.devices())
    return f"{program}, on {devices or 'the CPU'}"


@functools.lru_cache(maxsize=8)
def _version_of(path: Path) -> str:
    """The build, once it is sure that the program has what we need."""
    usage = _ask(path, "--help")
    version = re.search(r"^version: (.+)$", _ask(path, "--version"), re.MULTILINE)
    build = version[1] if version else "of an unknown version"
    if missing := [flag for flag in _NEEDED if flag not in usage]:
        raise EdgeRuntimeError(
            f"{path} ({build}) is the wrong version: it lacks {', '.join(missing)} "
            "(deploy/build-llama-server.sh builds the right one)"
        )
    return build


def _ask(path: Path, flag: str) -> str:
    try:
        done = subprocess.run(
            [str(path), flag], capture_output=True, text=True, errors="replace", timeout=_PROBE_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise EdgeRuntimeError(f"{path} cannot be run: {reason}") from None
    return done.stdout + done.stderr
