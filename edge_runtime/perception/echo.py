"""Our own voice in our own ears: kept out by the sound server where it can, by not listening where it can't."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass

TAIL_S = 0.3
"""After our voice has ended, the room and the buffers still have some of it."""
PACTL_S = 5.0
HINT = "load module-echo-cancel and make its source and its sink the default ones"


class Gate:
    """Closed while our own voice is to be heard: what the microphones hear then is ours, not a person's (half-duplex).

    Used by any number of loudspeakers and microphones.
    """

    def __init__(self, tail_s: float = TAIL_S) -> None:
        """`tail_s`: seconds for which it stays closed afterwards."""
        self._tail = tail_s
        self._lock = threading.Lock()
        self._speaking = 0
        self._open_at = 0.0

    @property
    def closed(self) -> bool:
        """Whether what is heard now may be our own voice."""
        with self._lock:
            return self._speaking > 0 or time.monotonic() < self._open_at

    def __enter__(self) -> None:
        with self._lock:
            self._speaking += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._speaking -= 1
            self._open_at = time.monotonic() + self._tail


@dataclass(frozen=True, slots=True)
class EchoCancellation:
    """What the sound server does about our own voice."""

    server: str | None
    """`PulseAudio 16.1` or the like; None where none answers."""
    active: bool
    """Whether both the default microphone and the default loudspeaker are those of an echo canceller."""
    line: str
    """For people: what this means and, if something is missing, how to mend it."""


def echo_cancellation() -> EchoCancellation:
    """Asks the sound server of this process's user; takes a moment, raises nothing."""
    info = _pactl("info")
    if info is None:
        if shutil.which("pactl") is None:
            return EchoCancellation(
                None, False, "half-duplex: no pactl (Debian: pulseaudio-utils) to ask for a sound server"
            )
        return EchoCancellation(None, False, "half-duplex: no sound server (PulseAudio, PipeWire) answers")
    facts = dict(line.split(": ", 1) for line in info.splitlines() if ": " in line)
    pipewire = re.search(r"PipeWire [\d.]*", facts.get("Server Name", ""))
    server = pipewire[0] if pipewire else f"PulseAudio {facts.get('Server Version', '')}".strip()
    source = _cancels("sources", facts.get("Default Source", ""))
    sink = _cancels("sinks", facts.get("Default Sink", ""))
    if source and sink:
        return EchoCancellation(server, True, f"echo cancellation by {server}: can be interrupted while it speaks")
    missing = "no echo canceller is loaded"
    if source or sink:
        missing = f"the default {'sink' if source else 'source'} is not the echo canceller's"
    return EchoCancellation(server, False, f"half-duplex: {missing}; {HINT}")


def _cancels(kind: str, name: str) -> bool:
    """Whether the sink or source `name` is made by an echo canceller, of PulseAudio or PipeWire."""
    for block in (_pactl("list", kind) or "").split("\n\n"):
        lines = [line.strip() for line in block.splitlines()]
        if f"Name: {name}" in lines:
            # PulseAudio names the module as the driver, PipeWire in the group of nodes that belong together.
            made_by = [line for line in lines if line.startswith(("Driver:", "node.group", "node.link-group"))]
            return not name.endswith(".monitor") and any("echo-cancel" in line for line in made_by)
    return False


def _pactl(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["pactl", *arguments], capture_output=True, timeout=PACTL_S, check=True, env=os.environ | {"LC_ALL": "C"}
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
