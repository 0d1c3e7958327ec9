"""What is refused before it is decoded, and at what price."""

from __future__ import annotations

import contextlib
import io
import json
import time
import tracemalloc

import numpy as np
import pytest
import soundfile
from PIL import Image

from edge_runtime import media
from edge_runtime.daemon import limits
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import LimitsSettings

LIMITS = LimitsSettings(image_pixels=1_000_000)
# What reading and refusing sixteen megabytes may take, on a slow machine that does other things.
PATIENCE_S = 20.0


def encoded(size, form, mode="RGB", **options):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, form, **options)
    return stream.getvalue()


def refused(code, call, *arguments):
    with pytest.raises(EdgeRuntimeError) as caught:
        call(*arguments)
    assert caught.value.code == code
    return str(caught.value)


def test_json_is_read():
    body = {"a": [1, {"b": 'quoted "x" \\ [{'}], "ü": "☃"}
    assert limits.json_object(json.dumps(body).encode(), 3) == body
    assert limits.json_object(json.dumps(body, ensure_ascii=False, indent=4).encode(), 3) == body


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b"\xff\xfe{\x00}\x00",
        b'{"a": "\xff"}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\\ud800"}',
        b'{"a": "unfinished',
        b'{"a": "\x00"}',
        b'{"a": 1}}',
        b'{"a": ' + b"9" * 5000 + b"}",
        '{"a": 1}'.encode("utf-16"),
    ],
)
def test_what_is_no_json_is_said_to_be_none(payload):
    assert refused("bad_request", limits.json_object, payload, 32) == "the payload is not valid JSON"


def test_json_that_is_no_object_is_refused():
    for payload in (b"[1]", b"1", b'"text"', b"null"):
        assert "must be a JSON object" in refused("bad_request", limits.json_object, payload, 32)


def test_deep_json_is_refused_before_it_is_parsed():
    deep = b'{"a":' * 10 + b"1" + b"}" * 10
    assert limits.json_object(deep, 10)
    assert "more than 9 deep" in refused("bad_request", limits.json_object, deep, 9)
    assert "deep" in refused("bad_request", limits.json_object, b"[" * 2**22, 32)
    brackets_in_text = json.dumps({"a": "[" * 1000}).encode()
    assert limits.json_object(brackets_in_text, 2) == {"a": "[" * 1000}


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a": [' + b"[]," * 1_000_000 + b"[]]}",
        b'{"a": [' + b'"",' * 1_000_000 + b'""]}',
        b'{"a": [' + b"1," * 2_000_000 + b"1]}",
        b'{"a": "' + b'\\"' * 2_000_000,
        b'{"' + b'\\"' * 1_000_000 + b'"' * 1_000_000,
        b"{" + b" " * 2**22 + b"}",
    ],
    ids=["lists", "texts", "numbers", "no end", "quotes", "spaces"],
)
def test_large_json_of_many_parts_costs_neither_memory_nor_time(payload):
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(EdgeRuntimeError):
        limits.json_object(payload, 32)
    assert time.monotonic() - started < PATIENCE_S
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(payload) + 16_000_000


def test_a_large_image_in_base64_is_no_obstacle():
    body = json.dumps({"images": ["A" * 8_000_000]}).encode()
    assert limits.json_object(body, 32)["images"][0][:3] == "AAA"


def test_base64_is_bounded_before_it_is_decoded():
    assert limits.base64_bytes("aGk=", "x", LIMITS) == b"hi"
    small = LimitsSettings(payload_bytes=1024)
    assert "more than 1,024 bytes" in refused("too_large", limits.base64_bytes, "A" * 1400, "x", small)
    for item, says in [
        (3, "must be base64"),
        ("a b", "not valid"),
        ("é", "not valid"),
        ("", "empty"),
        ("abc", "not v"),
    ]:
        assert says in refused("bad_request", limits.base64_bytes, item, "x", LIMITS)


@pytest.mark.parametrize(
    "options",
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "comment": b"x" * 300, "exif": b"Exif\0\0" + b"x" * 600}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"x" * 10}),
    ],
)
def test_image_headers_tell_the_size(options, monkeypatch):
    form, more = options
    data = encoded((321, 123), form, **more)
    limits.check_image(data, "x", LIMITS)
    tight = LimitsSettings(image_pixels=1024)
    assert (
        refused("too_large", limits.check_image, data, "x", tight) == "x is 321 x 123; at most 1,024 pixels are taken"
    )


def test_a_bomb_is_seen_by_its_header():
    bomb = encoded((13_000, 13_000), "PNG", mode="1")
    assert len(bomb) < 30_000
    assert "13000 x 13000" in refused("too_large", limits.check_image, bomb, "x", LimitsSettings())
    lossless = bytearray(encoded((16, 16), "WEBP", lossless=True))
    at = lossless.index(b"VP8L") + 9
    lossless[at : at + 4] = (16382 | 16382 << 14).to_bytes(4, "little")
    assert "16383 x 16383" in refused("too_large", limits.check_image, bytes(lossless), "x", LimitsSettings())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8" + b"\xff\xe0\x00\x00" * 50,
        b"\xff\xd8" + b"\xff" * 100_000,
        b"RIFF\0\0\0\0WEBP",
        encoded((9, 9), "BMP"),
        encoded((9, 9), "GIF"),
        encoded((9, 9), "TIFF"),
        encoded((9, 9), "ICO"),
    ],
)
def test_only_three_formats_are_images(data):
    assert "is not a JPEG, PNG or WebP" in refused("unsupported_media", limits.check_image, data, "x", LIMITS)


def test_every_image_that_the_header_lets_through_is_within_the_limit_when_decoded():
    rng = np.random.default_rng(7)
    plain = [encoded((40, 30), form) for form in ("PNG", "JPEG", "WEBP")]
    for _ in range(300):
        data = bytearray(plain[rng.integers(3)])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(EdgeRuntimeError):
            limits.check_image(bytes(data), "x", LIMITS)
            image = media.load_image(bytes(data), LIMITS.image_pixels)
            assert image.width * image.height <= LIMITS.image_pixels


def test_only_four_formats_are_recordings():
    samples = np.zeros(1600, np.float32)
    for form in ("WAV", "FLAC", "OGG", "MP3"):
        stream = io.BytesIO()
        soundfile.write(stream, samples, 16_000, format=form)
        limits.check_audio(stream.getvalue(), "x")
    for form in ("AIFF", "CAF", "AU", "W64"):
        stream = io.BytesIO()
        soundfile.write(stream, samples, 16_000, format=form)
        assert "is not a WAV" in refused("unsupported_media", limits.check_audio, stream.getvalue(), "x")
    for data in (b"", b"\xff", b"\xff\xd8\xff\xe0", b"noise", b"RIFF\0\0\0\0AVI "):
        refused("unsupported_media", limits.check_audio, data, "x")


def test_a_recording_of_many_channels_is_never_in_memory_as_a_whole():
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", 96_000, 8, format="FLAC", subtype="PCM_16") as sound:
        silence = np.zeros((96_000, 8), np.float32)
        for _ in range(60):
            sound.write(silence)
    tracemalloc.start()
    samples = media.load_audio(stream.getvalue(), 60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == 60 * media.SAMPLE_RATE
    assert peak < 60 * 96_000 * 8 * 4 / 4  # a quarter of what it unpacks to
