"""Video files whose pictures tell their time by their brightness."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path


def brightness(second: int) -> int:
    return 20 + 35 * (second % 6)


def make_video(
    path: Path, seconds: float, *, fps: int = 10, size: tuple[int, int] = (320, 240), audio: bool = False
) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        sound = container.add_stream("aac", rate=16_000, layout="mono") if audio else None
        for number in range(int(seconds * fps)):
            pixels = np.full((size[1], size[0], 3), brightness(number // fps), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 16_000
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path
