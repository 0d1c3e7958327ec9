"""Pictures from a GStreamer pipeline in a process of its own: Jetson's CSI cameras, and all that GStreamer can do.

A source `csi:0` is the first camera of a Jetson; `gst:` and a pipeline is anything else, such as
`gst:libcamerasrc ! video/x-raw,width=1280,height=720`. The pipeline ends in raw video; what follows is ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import threading
import time
from typing import TYPE_CHECKING

from edge_runtime.perception.child import Child
from edge_runtime.perception.frame import PilPicture

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = (1280, 720)
RATE = 5
"""Frames per second at most: each is copied, wanted or not."""
PIPE_BYTES = 2**20
F_SETPIPE_SZ = 1031
"""Linux's fcntl to make a pipe larger; Python has no name for it on every build."""


class Pipeline:
    """One run of a pipeline. `run` reads, in one thread; `newest` is for any other."""

    def __init__(self, source: str, *, open_s: float, read_s: float, size: tuple[int, int] | None) -> None:
        """Starts it.

        Args:
            source: `gst:` and a pipeline, or `csi:` and the number of a sensor.
            open_s: The first frame must come within so many seconds.
            read_s: Each other frame must.
            size: (width, height) of what is wanted; None is `SIZE`.

        Raises:
            SourceLost: GStreamer isn't installed.
        """
        self._width, self._height = size or SIZE
        self._wait_s, self._read_s = open_s, read_s
        self._newest: tuple[PilPicture, float] | None = None
        self._closing = threading.Event()
        self._child = Child(["gst-launch-1.0", "-q", *shlex.split(self._described(source))])
        with contextlib.suppress(OSError):  # else it is only slower
            fcntl.fcntl(self._child.output, F_SETPIPE_SZ, PIPE_BYTES)

    def run(self, arrived: Callable[[], None]) -> None:
        """Reads until `close`, calls `arrived` after each frame.

        Raises:
            SourceLost: It ended, broke or was silent.
        """
        from PIL import Image  # noqa: PLC0415 - heavy

        with self._child as child:
            while not self._closing.is_set():
                data = child.read(3 * self._width * self._height, self._wait_s)
                self._newest = PilPicture(Image.frombytes("RGB", (self._width, self._height), data)), time.monotonic()
                self._wait_s = self._read_s
                arrived()

    def newest(self) -> tuple[PilPicture, float] | None:
        """The newest picture and the `time.monotonic()` at which it came in; None where there is none yet."""
        return self._newest

    def close(self) -> None:
        """Ends `run`, from any thread."""
        self._closing.set()
        self._child.kill()

    def _described(self, source: str) -> str:
        """The whole pipeline; rows of RGB need a width that divides by four, else GStreamer pads them."""
        kind, _, rest = source.partition(":")
        if kind == "csi":
            rest = (
                f"nvarguscamerasrc sensor-id={int(rest or 0)} ! video/x-raw(memory:NVMM),width={self._width},"
                f"height={self._height} ! nvvidconv ! video/x-raw,format=BGRx"
            )
        return (
            f"{rest} ! videorate drop-only=true max-rate={RATE} ! queue leaky=downstream max-size-buffers=1 ! "
            f"videoconvert ! videoscale ! video/x-raw,format=RGB,width={self._width},height={self._height},"
            "pixel-aspect-ratio=1/1 ! fdsink fd=1 sync=false"
        )
