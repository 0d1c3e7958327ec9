"""What a request may weigh, looked at before anything is decoded: JSON by its bytes, media by their headers.

All of it is plain Python on plain bytes: a damaged file is seen by a C library only when its request runs, which is
then stored and its starts are counted (see `store`).
"""

from __future__ import annotations

import binascii
import json
import re
import struct
from base64 import b64decode
from typing import TYPE_CHECKING, Any, NoReturn

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from edge_runtime.settings import LimitsSettings

# What JSON may have outside its strings (brackets, numbers, spaces; a string counts as one): each byte there can become
# an object of 60 bytes.
SKELETON_BYTES = 2**16
ID_LENGTH = 256

# Without backtracking, and the closing quote may be missing: linear in whatever comes.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_PNG = b"\x89PNG\r\n\x1a\n"


def json_object(payload: bytes, depth: int) -> dict[str, Any]:
    """The JSON object in `payload`.

    Raises:
        EdgeRuntimeError: `bad_request` for what is no JSON object in UTF-8, or one that is nested deeper than `depth`;
            `too_large` for one of too many parts.
    """
    level = 0
    skeleton = _skeleton(payload)
    for bracket in _BRACKET.finditer(skeleton):
        level += 1 if bracket[0] in b"[{" else -1
        if level > depth:
            raise EdgeRuntimeError(f"the JSON is nested more than {depth} deep")
    if len(skeleton) >= SKELETON_BYTES:
        raise EdgeRuntimeError("the JSON has too many parts", "too_large")
    try:
        body = json.loads(payload.decode("utf-8"), parse_constant=_refuse_json)
        if b"\\ud" in payload.lower():  # half a surrogate pair is no text: it could not be sent back
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        _refuse_json()
    if not isinstance(body, dict):
        raise EdgeRuntimeError("the payload must be a JSON object")
    return body


def base64_bytes(item: object, name: str, limits: LimitsSettings) -> bytes:
    """The bytes that `item`, the value of the key `name`, stands for.

    Raises:
        EdgeRuntimeError: No base64, empty, or more than a payload may have.
    """
    if not isinstance(item, str):
        raise EdgeRuntimeError(f"{name}: must be base64")
    if len(item) // 4 * 3 > limits.payload_bytes:
        raise EdgeRuntimeError(f"{name}: more than {limits.payload_bytes:,} bytes", "too_large")
    try:
        data = b64decode(item, validate=True)
    except (binascii.Error, ValueError):
        raise EdgeRuntimeError(f"{name}: not valid base64") from None
    if not data:
        raise EdgeRuntimeError(f"{name}: empty")
    return data


def check_image(data: bytes, name: str, limits: LimitsSettings) -> None:
    """Looks at the header of an image.

    Raises:
        EdgeRuntimeError: `unsupported_media` for what is no JPEG, PNG or WebP; `too_large` for too many pixels.
    """
    size = _png_size(data) or _webp_size(data) or _jpeg_size(data)
    if size is None:
        raise EdgeRuntimeError(f"{name} is not a JPEG, PNG or WebP image", "unsupported_media")
    width, height = size
    if width * height > limits.image_pixels:
        raise EdgeRuntimeError(
            f"{name} is {width} x {height}; at most {limits.image_pixels:,} pixels are taken", "too_large"
        )


def check_audio(data: bytes, name: str) -> None:
    """Looks at the first bytes of a recording; how long it is shows its header when the request runs.

    Raises:
        EdgeRuntimeError: `unsupported_media` for what is no WAV, FLAC, OGG or MP3.
    """
    wav = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    mp3 = data[:3] == b"ID3" or (data[:1] == b"\xff" and len(data) > 1 and data[1] & 0xE6 == 0xE2)
    if not (wav or mp3 or data[:4] in {b"fLaC", b"OggS"}):
        raise EdgeRuntimeError(f"{name} is not a WAV, FLAC, OGG or MP3 file", "unsupported_media")


def _skeleton(payload: bytes) -> bytes:
    """JSON with a space in the place of each string; of what is too much, no more than `SKELETON_BYTES`."""
    parts, size, at = [], 0, 0
    for string in _STRING.finditer(payload):
        parts.append(payload[at : min(string.start(), at + SKELETON_BYTES)])
        size += len(parts[-1]) + 1
        at = string.end()
        if size >= SKELETON_BYTES:
            break
    return b" ".join([*parts, payload[at : at + SKELETON_BYTES]])[:SKELETON_BYTES]


def _refuse_json(_: str = "") -> NoReturn:
    raise EdgeRuntimeError("the payload is not valid JSON")


def _png_size(data: bytes) -> tuple[int, int] | None:
    if data[:8] != _PNG or data[12:16] != b"IHDR" or len(data) < 24:
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """WebP container specification (RFC 9649): a lossy, a lossless or an extended file."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The first frame header (SOF, ITU-T T.81 B.2.2), found by going from marker to marker."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        elif marker in {0x01, *range(0xD0, 0xD8)}:  # markers without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
