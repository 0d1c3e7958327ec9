"""Pictures and sound from files, bytes or arrays, within limits: what comes from outside is checked here, once."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL.Image import Image

ImageSource: TypeAlias = "str | Path | bytes | Image | NDArray[np.uint8]"
AudioSource: TypeAlias = "str | Path | bytes | NDArray[Any]"

SAMPLE_RATE = 16_000
"""Samples per second of everything that `load_audio` returns."""

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_IMAGE_PIXELS = 50_000_000
MAX_AUDIO_SECONDS = 4 * 3600
BLOCK_SAMPLES = 2**20
"""Samples of all channels together that are decoded at a time."""


def load_image(source: ImageSource, max_pixels: int = MAX_IMAGE_PIXELS) -> Image:
    """An image as RGB, turned upright by its orientation tag, transparency laid over white.

    Args:
        source: A file, its bytes, a PIL image, or uint8 `[height, width, 3]`.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        EdgeRuntimeError: Missing file; not a JPEG, PNG or WebP; damaged; too large.
    """
    from PIL import Image as pil  # noqa: N813, PLC0415 - imported on first use: `import edge_runtime` must stay quick
    from PIL import ImageOps, UnidentifiedImageError  # noqa: PLC0415

    name = "the image"
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise EdgeRuntimeError("an image array must be uint8 [height, width, 3]", "unsupported_media")
        image = pil.fromarray(source)
    elif isinstance(source, pil.Image):
        image = source
    else:
        name, stream = _open(source, "image")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            try:
                image = pil.open(stream, formats=IMAGE_FORMATS)
                _check_pixels(name, image, max_pixels)
                image.load()
            except UnidentifiedImageError:
                raise EdgeRuntimeError(f"{name} is not a JPEG, PNG or WebP image", "unsupported_media") from None
            except (pil.DecompressionBombError, pil.DecompressionBombWarning):
                raise EdgeRuntimeError(f"{name} has more than {max_pixels} pixels", "too_large") from None
            except (OSError, SyntaxError, ValueError) as error:
                raise EdgeRuntimeError(f"{name} is damaged: {error}", "unsupported_media") from None
    _check_pixels(name, image, max_pixels)
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = pil.new("RGBA", image.size, (255, 255, 255, 255))
        image = pil.alpha_composite(white, image)
    return image.convert("RGB")


def resize(image: Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bicubic resize to (width, height) by Pillow, whose antialiasing Gemma 4's processor relies on.

    Returns:
        uint8 `[height, width, 3]`.
    """
    from PIL import Image as pil  # noqa: N813, PLC0415

    return np.asarray(image if image.size == size else image.resize(size, pil.Resampling.BICUBIC), dtype=np.uint8)


def load_audio(source: AudioSource, max_seconds: float = MAX_AUDIO_SECONDS) -> NDArray[np.float32]:
    """Sound as mono float32 in -1..1 at `SAMPLE_RATE`.

    Args:
        source: A file (WAV, FLAC, OGG, MP3), its bytes, or an array of samples that already has that form.
        max_seconds: Longer recordings are refused before they are decoded.

    Raises:
        EdgeRuntimeError: Missing file; not a sound file; empty; too long.
    """
    if isinstance(source, np.ndarray):
        return _check_samples(source)
    import soundfile  # noqa: PLC0415

    name, stream = _open(source, "audio")
    try:
        with _in_memory(stream) as file, soundfile.SoundFile(file) as sound:
            if sound.frames > max_seconds * sound.samplerate:
                raise EdgeRuntimeError(f"{name} lasts longer than {max_seconds:.0f} s", "too_large")
            mono = _mono(sound)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError):
        raise EdgeRuntimeError(f"{name} is not a WAV, FLAC, OGG or MP3 file", "unsupported_media") from None
    if not len(mono):
        raise EdgeRuntimeError(f"{name} holds no sound", "unsupported_media")
    if not np.isfinite(mono).all():
        raise EdgeRuntimeError(f"{name} holds samples that are not numbers", "unsupported_media")
    return np.clip(mono, -1.0, 1.0)


@contextlib.contextmanager
def _in_memory(stream: io.BytesIO) -> Iterator[str]:
    """The content as a file without a name on any disk.

    soundfile would read the stream itself through callbacks, for which cffi makes memory that can be written and
    executed: systemd's MemoryDenyWriteExecute, under which the daemon runs, forbids that.
    """
    with os.fdopen(os.memfd_create("sound"), "wb") as file:
        file.write(stream.getbuffer())
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _mono(sound: Any) -> NDArray[np.float32]:
    """An open `soundfile.SoundFile`, mixed down and resampled block by block.

    A few kilobytes of FLAC can hold minutes of many channels: they never stand in memory as a whole.
    """
    import soxr  # noqa: PLC0415

    rate, channels = int(sound.samplerate), int(sound.channels)
    resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    parts = []
    while len(block := sound.read(max(1, BLOCK_SAMPLES // channels), dtype="float32", always_2d=True)):
        mono = block.mean(axis=1, dtype=np.float32) if channels > 1 else block[:, 0].copy()
        parts.append(resampler.resample_chunk(mono) if resampler else mono)
    if resampler and parts:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(parts, dtype=np.float32) if parts else np.zeros(0, np.float32)


def _open(source: str | Path | bytes, kind: str) -> tuple[str, io.BytesIO]:
    """A name for messages, and the content; an empty source is refused."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data = f"the {kind}", bytes(source)
    elif isinstance(source, (str, Path)):
        if str(source).startswith(("http://", "https://")):
            raise EdgeRuntimeError(f"{source}: give a file, nothing is fetched from the network")
        path = Path(source)
        name = str(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise EdgeRuntimeError(f"{name}: no such file") from None
        except OSError as error:
            raise EdgeRuntimeError(f"{name}: {error.strerror or error}") from None
    else:
        raise EdgeRuntimeError(f"{kind} must be a path, bytes or an array, not {type(source).__name__}")
    if not data:
        raise EdgeRuntimeError(f"{name} is empty", "unsupported_media")
    return name, io.BytesIO(data)


def _check_pixels(name: str, image: Image, limit: int) -> None:
    if image.width * image.height > limit:
        raise EdgeRuntimeError(f"{name} is {image.width} x {image.height}, more than {limit} pixels", "too_large")


def _check_samples(samples: NDArray[Any]) -> NDArray[np.float32]:
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise EdgeRuntimeError("an audio array must be mono float32 samples at 16 kHz in -1..1", "unsupported_media")
    if not len(samples) or not np.isfinite(samples).all():
        raise EdgeRuntimeError("the audio array is empty or holds samples that are not numbers", "unsupported_media")
    return samples.astype(np.float32, copy=False)
