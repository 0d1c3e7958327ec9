"""What may be asked: an MQTT payload becomes a `Request`, or an error that says what is wrong with it.

Knows the payloads' shapes; knows nothing of brokers, queues or the model. Media stay encoded here: they are decoded
when the request runs, so that a full queue holds files and not pixels.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.settings import LimitsSettings

Kind = Literal["ask", "transcribe", "describe"]

DESCRIBE_PROMPT = "Describe this image."
ID_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Reply:
    """Where the answer goes."""

    topic: str
    correlation: bytes | None = None
    """The requester's Correlation Data, echoed as it came."""


@dataclass(frozen=True, slots=True)
class Request:
    """One accepted request."""

    kind: Kind
    id: str
    key: str
    """Equal for two requests that are the same one sent again."""
    once: bool
    """Whether it is to be dropped when its key is known already."""
    reply: Reply
    messages: list[dict[str, Any]] = field(default_factory=list)
    """Chat messages for `ask` and `describe`, images and audio as the bytes of their files."""
    audio: bytes = b""
    """The file to `transcribe`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `Model.chat`."""
    stream: bool = False
    priority: int = 0
    """Higher runs sooner."""
    deadline: float | None = None
    """`time.monotonic()` after which nobody wants the answer; None: for ever."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What MQTT says about a payload beside the payload itself."""

    kind: Kind
    reply: Reply
    received: float
    """`time.monotonic()` of arrival."""
    expiry_s: float | None = None
    """Message Expiry Interval that was left on arrival, in seconds."""
    redelivered: bool = False
    """Whether the broker says that it may have delivered this before."""


def identify(payload: bytes, envelope: Envelope, limits: LimitsSettings) -> tuple[str, bool]:
    """The id that a payload's answer will carry, and whether the payload chose it. Never raises.

    An id comes from the JSON, else from readable Correlation Data, else it is a new one.
    """
    if payload[:1] == b"{" and len(payload) <= limits.payload_bytes:
        try:
            given = json.loads(payload).get("id")
        except (ValueError, RecursionError):
            given = None
        if isinstance(given, str) and 0 < len(given) <= ID_LENGTH:
            return given, True
    correlation = envelope.reply.correlation or b""
    if 0 < len(correlation) <= ID_LENGTH and correlation.isascii():
        text = correlation.decode()
        if text.isprintable():
            return text, False
    return uuid.uuid4().hex, False


def parse(payload: bytes, envelope: Envelope, limits: LimitsSettings) -> Request:
    """The request that `payload` makes.

    Raises:
        EdgeRuntimeError: `bad_request` or `too_large`.
    """
    if len(payload) > limits.payload_bytes:
        raise EdgeRuntimeError(
            f"payload of {len(payload):,} bytes; at most {limits.payload_bytes:,} are taken", "too_large"
        )
    request_id, named = identify(payload, envelope, limits)
    parts = _PARSERS[envelope.kind](payload)
    limit_s = parts.pop("deadline_s", None)
    waits = [seconds for seconds in (limit_s, envelope.expiry_s) if seconds is not None]
    deadline = envelope.received + min(waits) if waits else None
    # Correlation Data is no id: clients count it from 1 at every start. Only the broker's word makes those the same.
    same = request_id.encode() if named else payload + (envelope.reply.correlation or b"")
    key = hashlib.sha256(f"{named} {envelope.kind} {envelope.reply.topic} ".encode() + same).hexdigest()
    once = named or envelope.redelivered
    return Request(envelope.kind, request_id, key, once, envelope.reply, deadline=deadline, **parts)


def parse_cancel(payload: bytes) -> str:
    """The id that a `cancel` payload names.

    Raises:
        EdgeRuntimeError: It names none.
    """
    request_id = _json_object(payload).get("id")
    if not isinstance(request_id, str) or not request_id:
        raise EdgeRuntimeError('cancel wants {"id": "..."}')
    return request_id


def _ask(payload: bytes) -> dict[str, Any]:
    body = _json_object(payload)
    _refuse_unknown(body, _ASK_KEYS)
    if "session" in body:
        raise EdgeRuntimeError("session: this daemon keeps no sessions; send the whole conversation in prompt")
    values = {key: check(key, body[key]) for key, check in _ASK_KEYS.items() if key in body and check}
    if "id" in body and len(values["id"]) > ID_LENGTH:
        raise EdgeRuntimeError(f"id: at most {ID_LENGTH} characters")
    content: list[dict[str, Any]] = [
        {"type": "image", "image": _image(item, f"images[{index}]")}
        for index, item in enumerate(values.get("images", []))
    ]
    if "audio" in body:
        content.append({"type": "audio", "audio": _audio(body["audio"])})
    prompt = values.get("prompt", "")
    if prompt:
        content.append({"type": "text", "text": prompt})
    if not content:
        raise EdgeRuntimeError("prompt: missing")
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if values.get("system"):
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": values["system"]}]})
    return {
        "messages": messages,
        "options": {key: values[key] for key in _CHAT_OPTIONS if key in values},
        "stream": values.get("stream", False),
        "priority": values.get("priority", 0),
        "deadline_s": values.get("deadline_s"),
    }


def _transcribe(payload: bytes) -> dict[str, Any]:
    if payload[:1] in {b"{", b""}:
        raise EdgeRuntimeError("transcribe wants the bytes of a WAV, FLAC, OGG or MP3 file")
    return {"audio": payload}


def _describe(payload: bytes) -> dict[str, Any]:
    if payload[:1] == b"{":
        body = _json_object(payload)
        _refuse_unknown(body, {"id": None, "camera": None, "prompt": None})
        raise EdgeRuntimeError("camera: this daemon has no cameras; send the bytes of a JPEG, PNG or WebP file")
    if not payload:
        raise EdgeRuntimeError("describe wants the bytes of a JPEG, PNG or WebP file")
    content = [
        {"type": "image", "image": payload},
        {"type": "text", "text": DESCRIBE_PROMPT},
    ]
    return {"messages": [{"role": "user", "content": content}]}


def _image(item: object, name: str) -> bytes:
    if isinstance(item, dict):
        raise EdgeRuntimeError(f"{name}: this daemon has no cameras; send the image itself as base64")
    return _base64(item, name)


def _audio(item: object) -> bytes:
    if isinstance(item, dict):
        raise EdgeRuntimeError("audio: this daemon has no microphones; send the recording itself as base64")
    return _base64(item, "audio")


def _base64(item: object, name: str) -> bytes:
    if not isinstance(item, str):
        raise EdgeRuntimeError(f"{name}: must be base64")
    try:
        data = base64.b64decode(item, validate=True)
    except (binascii.Error, ValueError):
        raise EdgeRuntimeError(f"{name}: not valid base64") from None
    if not data:
        raise EdgeRuntimeError(f"{name}: empty")
    return data


def _json_object(payload: bytes) -> dict[str, Any]:
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError):
        raise EdgeRuntimeError("the payload is not valid JSON") from None
    if not isinstance(body, dict):
        raise EdgeRuntimeError("the payload must be a JSON object")
    return body


def _refuse_unknown(body: dict[str, Any], known: dict[str, Any]) -> None:
    for key in body:
        if key not in known:
            raise EdgeRuntimeError(f"unknown key {key[:40]!r} (there are {', '.join(known)})")


def _kind(wanted: type | tuple[type, ...], says: str) -> Callable[[str, Any], Any]:
    def check(key: str, value: Any) -> Any:
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise EdgeRuntimeError(f"{key}: must be {says}")
        return value

    return check


def _between(low: float, high: float, *, whole: bool) -> Callable[[str, Any], Any]:
    def check(key: str, value: Any) -> Any:
        kinds = int if whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or not low <= value <= high:
            raise EdgeRuntimeError(f"{key}: must be a {'whole ' if whole else ''}number from {low:g} to {high:g}")
        return value

    return check


_TEXT = _kind(str, "a text")
# Every key of `ask` with its check; None where a function of its own looks at it.
_ASK_KEYS: dict[str, Callable[[str, Any], Any] | None] = {
    "id": _TEXT,
    "prompt": _TEXT,
    "system": _TEXT,
    "images": _kind(list, "a list"),
    "audio": None,
    "schema": _kind(dict, "a JSON schema (an object)"),
    "tools": _kind(list, "a list of functions"),
    "session": None,
    "max_tokens": _between(1, 1_000_000, whole=True),
    "temperature": _between(0, 10, whole=False),
    "seed": _between(0, 2**63 - 1, whole=True),
    "stream": _kind(bool, "true or false"),
    "priority": _between(-1000, 1000, whole=True),
    "deadline_s": _between(0, 31_536_000, whole=False),
}
_CHAT_OPTIONS = ("schema", "tools", "max_tokens", "temperature", "seed")
_PARSERS: dict[Kind, Callable[[bytes], dict[str, Any]]] = {
    "ask": _ask,
    "transcribe": _transcribe,
    "describe": _describe,
}
