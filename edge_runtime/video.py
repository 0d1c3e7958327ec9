"""Frames of a video file, one a second, by PyAV (the extra `camera`)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.media import MAX_IMAGE_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

VideoSource: TypeAlias = "str | Path | bytes"

MAX_SECONDS = 60
"""What Gemma 4 was made to look at."""


@dataclass(frozen=True)
class Frame:
    """A picture of a video.

    Attributes:
        seconds: Since the beginning.
        image: RGB.
    """

    seconds: int
    image: Image

    @property
    def time(self) -> str:
        """Minutes and seconds, as Gemma 4 is told them: `00:07`."""
        return f"{self.seconds // 60:02d}:{self.seconds % 60:02d}"


def load_video(source: VideoSource, max_frames: int = MAX_SECONDS, max_pixels: int = MAX_IMAGE_PIXELS) -> list[Frame]:
    """The pictures at 0, 1, 2, .. seconds; where that were too many, as many as there may be, evenly spread.

    Args:
        source: A file (whatever FFmpeg reads), or its bytes.
        max_frames: Pictures at most.
        max_pixels: Videos of larger pictures are refused.

    Raises:
        EdgeRuntimeError: Missing file; not a video; longer than `MAX_SECONDS`; the extra is missing.
    """
    try:
        import av  # noqa: PLC0415 - an extra
    except ImportError:
        raise EdgeRuntimeError("video needs the extra camera: pip install edge-runtime[camera]") from None
    name, content = _opened(source)
    try:
        # Nothing but this one file: a playlist must not name others.
        with av.open(content, options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise EdgeRuntimeError(f"{name} has no video", "unsupported_media")
            stream = container.streams.video[0]
            _check_size(name, stream, max_pixels)
            stream.thread_type = "AUTO"
            frames = _each_second(name, container.decode(stream))
    except (av.FFmpegError, ValueError, OSError) as error:
        said = getattr(error, "strerror", None) or error
        raise EdgeRuntimeError(f"{name} is not a video that can be read: {said}", "unsupported_media") from None
    if not frames:
        raise EdgeRuntimeError(f"{name} holds no picture", "unsupported_media")
    if len(frames) > max_frames:
        step = len(frames) / max(1, max_frames)
        frames = [frames[int(number * step)] for number in range(max(1, max_frames))]
    return frames


def _opened(source: VideoSource) -> tuple[str, Any]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not source:
            raise EdgeRuntimeError("the video is empty", "unsupported_media")
        return "the video", io.BytesIO(bytes(source))
    if not isinstance(source, (str, Path)):
        raise EdgeRuntimeError(f"video must be a path or bytes, not {type(source).__name__}")
    if "://" in str(source):
        raise EdgeRuntimeError(f"{source}: give a file, nothing is fetched from the network")
    if not Path(source).is_file():
        raise EdgeRuntimeError(f"{source}: no such file")
    return str(source), f"file:{source}"


def _check_size(name: str, stream: Any, limit: int) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limit:
        raise EdgeRuntimeError(f"{name} is {width} x {height}, more than {limit} pixels", "too_large")


def _each_second(name: str, decoded: Any) -> list[Frame]:
    """The first picture of each second; pictures without a time are taken for 24 a second."""
    frames: list[Frame] = []
    begun: float | None = None
    for number, picture in enumerate(decoded):
        at = picture.time if picture.time is not None else number / 24
        begun = at if begun is None else begun
        if at - begun > MAX_SECONDS:
            raise EdgeRuntimeError(f"{name} lasts longer than {MAX_SECONDS} s", "too_large")
        second = int(at - begun + 1e-3)
        if second >= (frames[-1].seconds + 1 if frames else 0) and len(frames) < MAX_SECONDS:
            frames.append(Frame(second, _upright(picture)))
    return frames


def _upright(picture: Any) -> Image:
    """RGB, turned as its metadata says: phones hold their cameras as they like."""
    image: Image = picture.to_image()
    rotation = int(getattr(picture, "rotation", 0) or 0)
    return image.rotate(rotation, expand=True) if rotation % 360 else image
