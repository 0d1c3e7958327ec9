from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from PIL import Image

from edge_runtime import media
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from pathlib import Path

PIXELS = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def sound(samples: np.ndarray, rate: int = 16_000, form: str = "WAV", **options: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, **options)
    return stream.getvalue()


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def test_images_from_everywhere(tmp_path: Path):
    image = Image.fromarray(PIXELS)
    (tmp_path / "a.png").write_bytes(encoded(image))
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), encoded(image), image, PIXELS):
        assert np.array_equal(np.asarray(media.load_image(source)), PIXELS)
    assert media.load_image(encoded(image, "JPEG")).size == (30, 20)
    assert media.load_image(encoded(image, "WEBP", lossless=True)).mode == "RGB"


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    assert np.asarray(media.load_image(encoded(image))).tolist() == [[[255, 255, 255], [255, 0, 0]]]
    assert media.load_image(Image.new("L", (3, 3), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_photos_stand_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    assert media.load_image(encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)).size == (20, 30)


@pytest.mark.parametrize(
    ("source", "line", "code"),
    [
        ("/none.png", "/none.png: no such file", "bad_request"),
        ("/", "/: Is a directory", "bad_request"),
        ("https://example.org/a.png", "nothing is fetched", "bad_request"),
        (b"", "the image is empty", "unsupported_media"),
        (b"hello", "the image is not a JPEG, PNG or WebP image", "unsupported_media"),
        (encoded(Image.fromarray(PIXELS), "BMP"), "is not a JPEG, PNG or WebP", "unsupported_media"),
        (encoded(Image.fromarray(PIXELS))[:200], "is damaged", "unsupported_media"),
        (3, "must be a path, bytes or an array, not int", "bad_request"),
        (PIXELS[..., 0], "must be uint8", "unsupported_media"),
    ],
)
def test_bad_images(source, line, code):
    with pytest.raises(EdgeRuntimeError, match=line) as error:
        media.load_image(source)
    assert error.value.code == code
    assert "\n" not in str(error.value)


def test_huge_images_are_refused_undecoded():
    with pytest.raises(EdgeRuntimeError, match="more than 100 pixels") as error:
        media.load_image(encoded(Image.fromarray(PIXELS)), max_pixels=100)
    assert error.value.code == "too_large"
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    with pytest.raises(EdgeRuntimeError, match="pixels"):
        media.load_image(bomb)


def test_resize_is_pillows_bicubic():
    image = Image.fromarray(PIXELS)
    assert np.array_equal(media.resize(image, (48, 96)), np.asarray(image.resize((48, 96), Image.Resampling.BICUBIC)))
    assert np.array_equal(media.resize(image, (30, 20)), PIXELS)


def test_sounds_from_everywhere(tmp_path: Path):
    samples = tone(16_000)
    (tmp_path / "a.wav").write_bytes(sound(samples))
    for source in (tmp_path / "a.wav", str(tmp_path / "a.wav"), sound(samples), samples):
        loaded = media.load_audio(source)
        assert loaded.dtype == np.float32
        assert np.abs(loaded - samples).max() < 1e-4
    for form in ("FLAC", "OGG", "MP3"):
        assert abs(len(media.load_audio(sound(samples, form=form))) - 16_000) < 2000


def test_other_rates_and_channels():
    stereo = np.stack([tone(44_100), np.zeros(44_100, np.float32)], axis=1)
    loaded = media.load_audio(sound(stereo, 44_100))
    assert abs(len(loaded) - 16_000) <= 1
    assert np.abs(loaded[2000:14_000] - 0.5 * tone(16_000)[2000:14_000]).max() < 5e-3


def test_loud_samples_are_clipped():
    loaded = media.load_audio(sound(np.full(100, 3.0, np.float32), subtype="FLOAT"))
    assert loaded.max() == 1.0


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("/none.wav", "/none.wav: no such file"),
        (b"", "the audio is empty"),
        (b"RIFF", "is not a WAV, FLAC, OGG or MP3 file"),
        (sound(np.zeros(0)), "holds no sound"),
        (sound(np.full(9, np.nan, np.float32), subtype="FLOAT"), "not numbers"),
        (np.zeros((2, 9), np.float32), "must be mono float32"),
        (np.zeros(9, np.int16), "must be mono float32"),
        (np.zeros(0, np.float32), "is empty"),
    ],
)
def test_bad_sounds(source, line):
    with pytest.raises(EdgeRuntimeError, match=line) as error:
        media.load_audio(source)
    assert "\n" not in str(error.value)


def test_long_sounds_are_refused_undecoded():
    with pytest.raises(EdgeRuntimeError, match="lasts longer than 1 s") as error:
        media.load_audio(sound(tone(16_000, 1.5)), max_seconds=1)
    assert error.value.code == "too_large"
