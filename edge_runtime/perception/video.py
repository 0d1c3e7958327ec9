"""Video by PyAV (the extra `camera`): V4L2, RTSP, MJPEG over HTTP and files, read as they come, decoded when asked.

Packets are cheap to receive and dear to decode. All since the last keyframe are kept, and decoded only when somebody
wants to see the newest: a camera that is asked once in ten seconds costs the decoding of one group of pictures, one
that sends JPEGs that of one picture.
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.frame import VideoPicture
from edge_runtime.perception.source import SourceLost

if TYPE_CHECKING:
    from collections.abc import Callable

BREATH_S = 0.04
EXTRA = "this camera needs the extra camera: pip install edge-runtime[camera]"
MAX_WAITING = 600
MAX_WAITING_BYTES = 32 * 2**20
"""More packets than these are decoded without being asked for: some cameras send a keyframe only once."""


def av() -> Any:
    """PyAV.

    Raises:
        EdgeRuntimeError: It isn't installed.
    """
    try:
        import av as library  # noqa: PLC0415 - an extra
    except ImportError:
        raise EdgeRuntimeError(EXTRA) from None
    return library


class Video:
    """One connection to a source. `run` reads, in one thread; `newest` decodes, in any other."""

    def __init__(
        self, source: str, *, open_s: float, read_s: float, max_pixels: int, size: tuple[int, int] | None
    ) -> None:
        """Opens it.

        Args:
            source: A device (`/dev/video0`), `rtsp://`, `http://` or the path of a file.
            open_s: It must answer within so many seconds.
            read_s: It must not be silent for longer.
            max_pixels: Larger pictures are not decoded.
            size: Wanted (width, height) of a V4L2 device.

        Raises:
            SourceLost: It cannot be opened.
        """
        self._library = av()
        self._read_s = read_s
        self._paced = "://" not in source and not source.startswith("/dev/")
        self._container = self._open(source, _options(source, size), (open_s, read_s))
        if not self._container.streams.video:
            self._container.close()
            raise SourceLost("it has no video")
        self._stream = self._container.streams.video[0]
        self._context = self._stream.codec_context
        self._context.thread_count = 1  # more would hold frames back
        self._context.options = {"max_pixels": str(max_pixels), "flags": "low_delay"}
        self._lock = threading.Lock()
        self._group: list[Any] = []
        self._bytes = self._done = 0
        self._fresh = False
        self._arrived: dict[int | None, float] = {}
        self._newest: tuple[VideoPicture, float] | None = None
        self._closing = False

    def run(self, arrived: Callable[[], None]) -> None:
        """Reads until `close`, calls `arrived` after each packet.

        Raises:
            SourceLost: It ended, broke or was silent.
        """
        try:
            self._read(arrived)
            while self._paced and not self._closing:  # a file begins again
                self._container.seek(0)
                self._read(arrived)
        except (self._library.FFmpegError, OSError) as error:
            raise SourceLost(_reason(error, f"silent for {self._read_s:g} s")) from None
        finally:
            with self._lock:
                self._container.close()
        if not self._closing:
            raise SourceLost("it ended")

    def newest(self) -> tuple[VideoPicture, float] | None:
        """The newest picture and the `time.monotonic()` at which it came in; None where there is none yet.

        Raises:
            SourceLost: What came cannot be decoded.
        """
        with self._lock:
            self._decode()
            return self._newest

    def close(self) -> None:
        """Ends `run` at the next packet, `read_s` at the latest."""
        self._closing = True

    def _open(
        self, source: str, attempts: list[tuple[str | None, dict[str, str]]], timeout: tuple[float, float]
    ) -> Any:
        reason = ""
        for form, options in attempts:
            try:
                return self._library.open(source, format=form, options=options, timeout=timeout)
            except (self._library.FFmpegError, OSError) as error:
                reason = _reason(error, f"no answer for {timeout[0]:g} s")
        raise SourceLost(reason)

    def _read(self, arrived: Callable[[], None]) -> None:
        clock = _Clock() if self._paced else None
        for packet in self._container.demux(self._stream):
            if self._closing:
                return
            if packet.size == 0:  # the end
                break
            if clock is not None:
                clock.wait(packet)
            self._keep(packet)
            arrived()
        if clock is not None:
            time.sleep(BREATH_S)  # a file of one picture is no reason to spin

    def _keep(self, packet: Any) -> None:
        with self._lock:
            if packet.is_keyframe:
                self._group.clear()
                self._arrived.clear()
                self._bytes, self._done, self._fresh = 0, 0, True
            self._arrived[packet.pts] = time.monotonic()
            self._group.append(packet)
            self._bytes += packet.size
            if len(self._group) > MAX_WAITING or self._bytes > MAX_WAITING_BYTES:
                self._decode()
                self._group.clear()
                self._bytes = self._done = 0

    def _decode(self) -> None:
        """Decodes what has come since the last time, or since the last keyframe if that is nearer."""
        if self._fresh and self._newest is not None:
            self._context.flush_buffers()
        waiting, self._done = self._group[self._done :], len(self._group)
        failure, seen = None, False
        for packet in waiting:
            try:
                seen |= self._show(packet.decode())
            except (self._library.FFmpegError, ValueError) as error:
                failure = error  # one damaged packet; the next may be sound
        if self._fresh and waiting and not seen and failure is None:
            # Where pictures are sent out of their order, the first ones are held back: have them, and do it again.
            self._show(self._context.decode(None))
            self._context.flush_buffers()
            self._done = 0
        else:
            self._fresh = False
        if failure is not None and not seen:
            raise SourceLost(f"its pictures cannot be decoded: {_reason(failure, '')}")

    def _show(self, frames: list[Any]) -> bool:
        for frame in frames:
            self._newest = VideoPicture(frame), self._arrived.get(frame.pts, time.monotonic())
        return bool(frames)


class _Clock:
    """Makes a file last as long as what it shows."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._first: float | None = None

    def wait(self, packet: Any) -> None:
        if packet.dts is None:
            return
        at = float(packet.dts * packet.time_base)
        self._first = at if self._first is None else self._first
        time.sleep(min(5.0, max(0.0, self._begun + at - self._first - time.monotonic())))


def _options(source: str, size: tuple[int, int] | None) -> list[tuple[str | None, dict[str, str]]]:
    """What to try, one after the other: FFmpeg's name of the format, None where it is to find out, and its options."""
    if source.startswith("/dev/"):
        wanted = {"video_size": f"{size[0]}x{size[1]}"} if size else {}
        # Most cameras give JPEGs faster and in larger sizes than raw pictures.
        return [("v4l2", {"input_format": "mjpeg", **wanted}), ("v4l2", wanted), ("v4l2", {})]
    if source.startswith(("rtsp://", "rtsps://")):
        # Half a second of looking at the stream rather than two: what it is, its description says.
        quick = {"fflags": "nobuffer", "analyzeduration": "500000"}
        return [(None, {"rtsp_transport": "tcp", "allowed_media_types": "video", **quick})]
    if "://" in source:  # nothing but the network: a playlist must not name files of ours
        return [(None, {"protocol_whitelist": "http,https,tcp,tls,crypto", "fflags": "nobuffer"})]
    return [(None, {"protocol_whitelist": "file"})]


def redacted(source: str) -> str:
    """`source` without the user's name and password, for logs."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", source)


def _reason(error: Exception, timeout: str) -> str:
    """What went wrong, without the source: FFmpeg's messages hold it, password and all."""
    if type(error).__name__ == "ExitError":
        return timeout
    return str(getattr(error, "strerror", "") or type(error).__name__)
