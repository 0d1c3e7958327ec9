"""A camera that is always there, and of which only the newest picture counts."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from edge_runtime import media
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.frame import Frame
from edge_runtime.perception.gstreamer import Pipeline
from edge_runtime.perception.source import Backoff, SourceLost, Status
from edge_runtime.perception.still import Still, is_still
from edge_runtime.perception.video import Video, av, redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.perception.frame import Picture

log = logging.getLogger(__name__)
CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class CameraOptions:
    """How one camera is looked through."""

    source: str
    """`/dev/video0`, `rtsp://...`, `http://...` (MJPEG or one picture), a video file, a picture file that another
    program renews, `csi:0` for a Jetson's camera, or `gst:` and a GStreamer pipeline."""
    size: tuple[int, int] | None = None
    """Wanted (width, height) where the source gives a choice: V4L2 and GStreamer."""
    max_pixels: int = 1920 * 1080
    """Pictures are made smaller than this before anybody gets them."""
    turn: int = 0
    """Degrees by which pictures are turned clockwise: 0, 90, 180 or 270."""
    open_s: float = 10.0
    """The source must answer within so many seconds."""
    read_s: float = 5.0
    """The source must send a picture at least this often; one that doesn't is opened again."""


class Reader(Protocol):
    """One connection to a source, as `Video` and `Pipeline` are."""

    def run(self, arrived: Callable[[], None]) -> None:
        """Reads until `close`; raises `SourceLost`."""

    def newest(self) -> tuple[Picture, float] | None:
        """The newest picture and when it came in."""

    def close(self) -> None:
        """Ends `run`."""


class Camera:
    """Looks until it is closed, whatever happens to the device or the network.

    Example:
        with Camera("door", CameraOptions("rtsp://10.0.0.7/stream")) as camera:
            image = camera.latest().image

    Attributes:
        name: What people call it.
        status: How it is.
    """

    def __init__(self, name: str, options: CameraOptions, *, on_change: Callable[[Status], None] | None = None) -> None:
        """Begins to look.

        Raises:
            EdgeRuntimeError: The extra `camera` is needed and isn't there.
        """
        self.name, self._options = name, options
        self.status = Status(f"camera {name}", on_change)
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._reader: Reader | None = None
        self._arrivals = 0
        self._trouble = "it sends no pictures"
        self._still = Still(options.source, options.open_s) if is_still(options.source) else None
        self._thread: threading.Thread | None = None
        if self._still is None:
            if not options.source.startswith(("gst:", "csi:")):
                av()
            self._thread = threading.Thread(target=self._look, name=f"camera {name}", daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def latest(self, max_age_s: float = 2.0, timeout_s: float = 5.0) -> Frame:
        """The newest picture.

        Args:
            max_age_s: An older one than this is not taken while a newer one may come.
            timeout_s: How long to wait for one that is young enough; after that, one of `read_s` at most will do.

        Raises:
            EdgeRuntimeError: There is none; the line says why.
        """
        if self._still is not None:
            return self._read(self._still)
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self._arrivals
            found = self._newest()  # decodes; the reader goes on meanwhile
            now = time.monotonic()
            if found is not None and now - found[1] <= (max_age_s if now < deadline else self._options.read_s):
                return self._frame(*found)
            if now >= deadline or self.status.state == "closed":
                detail = self._trouble if self.status.state == "open" else self.status.detail
                raise EdgeRuntimeError(f"{self.status.label}: {detail or 'no picture yet'}", "internal")
            with self._changed:
                if self._arrivals == seen:
                    self._changed.wait(deadline - now)

    def snapshot(self) -> dict[str, Any]:
        """For status pages and metrics; see `Status`."""
        return self.status.snapshot()

    def close(self) -> None:
        """Ends it."""
        self._closing.set()
        if reader := self._reader:
            reader.close()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        self.status.closed()
        self._wake()

    def _newest(self) -> tuple[Picture, float] | None:
        try:
            return self._reader.newest() if self._reader is not None and self.status.state == "open" else None
        except SourceLost as lost:
            self._trouble = str(lost)
            return None

    def _frame(self, picture: Picture, taken: float) -> Frame:
        return Frame(self.name, picture, taken, self._options.max_pixels, self._options.turn)

    def _read(self, still: Still) -> Frame:
        try:
            found = still.newest()
        except SourceLost as lost:
            self._lost(lost)
            raise EdgeRuntimeError(f"{self.status.label}: {self.status.detail}", "internal") from None
        self.status.opened()
        return self._frame(*found)

    def _look(self) -> None:
        backoff = Backoff(first_s=1.0, cap_s=30.0)
        while not self._closing.is_set():
            opened = time.monotonic()
            try:
                self._reader = self._open()
                if not self._closing.is_set():
                    self._reader.run(self._arrived)
            except Exception as error:
                if self._closing.is_set():
                    break
                if not isinstance(error, SourceLost):
                    log.debug("%s", self.status.label, exc_info=True)
                self._lost(error)
                if not backoff.wait(self._closing, time.monotonic() - opened):
                    break

    def _lost(self, why: Exception) -> None:
        self.status.lost(redacted(f"{self._options.source}: {why}"))

    def _open(self) -> Reader:
        options = self._options
        times = {"open_s": options.open_s, "read_s": options.read_s}
        if options.source.startswith(("gst:", "csi:")):
            return Pipeline(options.source, size=options.size, **times)
        return Video(options.source, size=options.size, max_pixels=media.MAX_IMAGE_PIXELS, **times)

    def _arrived(self) -> None:
        self.status.opened()
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._arrivals += 1
            self._changed.notify_all()
