"""One picture from a camera, converted only when and as far as somebody wants it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


class Picture(Protocol):
    """A decoded picture in whatever form its source has it."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        ...

    def rgb(self, width: int, height: int) -> Image:
        """In that size."""
        ...

    def luma(self, width: int, height: int) -> NDArray[np.uint8]:
        """Brightness alone, uint8 `[height, width]`."""
        ...


class Frame:
    """A picture and when it was taken.

    Attributes:
        camera: Which one saw it.
        taken: `time.monotonic()` when it came in.
    """

    def __init__(self, camera: str, picture: Picture, taken: float, max_pixels: int, turn: int = 0) -> None:
        """Args as in `Camera`; `picture` is kept as it is."""
        self.camera, self.taken = camera, taken
        self._picture, self._max_pixels, self._turn = picture, max_pixels, turn

    @property
    def image(self) -> Image:
        """An RGB picture of `max_pixels` at most, turned upright."""
        image = self._picture.rgb(*fit(self._picture.size, self._max_pixels))
        return image.rotate(-self._turn, expand=True) if self._turn else image

    def luma(self, width: int, height: int) -> NDArray[np.float32]:
        """Brightness, 0..255, float32 `[height, width]`: each value the mean of its part of the picture, not turned."""
        return self._picture.luma(width, height).astype(np.float32)


class PilPicture:
    """A picture that Pillow has decoded."""

    def __init__(self, image: Image) -> None:
        """`image`: RGB."""
        self._image = image

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self._image.size

    def rgb(self, width: int, height: int) -> Image:
        """In that size."""
        from PIL.Image import Resampling  # noqa: PLC0415 - heavy

        return (
            self._image if self._image.size == (width, height) else self._image.resize((width, height), Resampling.BOX)
        )

    def luma(self, width: int, height: int) -> NDArray[np.uint8]:
        """Brightness alone, uint8 `[height, width]`."""
        from PIL.Image import Resampling  # noqa: PLC0415

        return np.asarray(self._image.resize((width, height), Resampling.BOX).convert("L"))


class VideoPicture:
    """A frame that PyAV has decoded; swscale converts and shrinks it in one step."""

    def __init__(self, frame: Any) -> None:
        """`frame`: an `av.VideoFrame`."""
        self._frame = frame

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self._frame.width, self._frame.height

    def rgb(self, width: int, height: int) -> Image:
        """In that size."""
        image: Image = self._frame.to_image(width=width, height=height, interpolation="AREA")
        return image

    def luma(self, width: int, height: int) -> NDArray[np.uint8]:
        """Brightness alone, uint8 `[height, width]`."""
        small: NDArray[np.uint8] = self._frame.to_ndarray(
            width=width, height=height, format="gray", interpolation="AREA"
        )
        return small


def fit(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """`size`, or the largest of its shape with `max_pixels` at most."""
    width, height = size
    scale = min(1.0, math.sqrt(max_pixels / (width * height)))
    return max(1, int(width * scale)), max(1, int(height * scale))
