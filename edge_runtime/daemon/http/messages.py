"""OpenAI's chat messages become those of the model. Media are in them, as data URIs and base64: nothing is fetched."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edge_runtime.daemon.http import checks
from edge_runtime.daemon.http.problems import Problem, bad, of_code
from edge_runtime.daemon.limits import base64_bytes, check_audio, check_image
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from edge_runtime.settings import LimitsSettings

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 1024
MOST_PARTS = 256
MOST_CALLS = 128
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)

Message = dict[str, Any]


class Reader:
    """Reads the messages of one request.

    Attributes:
        media: Characters of base64 that were read.
        images: Images that were read.
    """

    def __init__(self, limits: LimitsSettings) -> None:
        self.media = self.images = 0
        self._limits = limits

    def read(self, value: Any) -> list[Message]:
        """The messages, with content items as `engine.model.Model.chat` takes them.

        Raises:
            Problem: Names what is wrong and where.
        """
        given = checks.items("messages", value, MOST_MESSAGES, 1)
        return [self._message(f"messages[{index}]", message) for index, message in enumerate(given)]

    def image(self, param: str, uri: str) -> dict[str, Any]:
        """The content item of an image in a data URI."""
        found = _DATA_URI.match(uri)
        if found is None:
            raise bad(param, "must be a data URI such as data:image/jpeg;base64,...: no address or path is opened")
        self.images += 1
        if self.images > self._limits.images:
            raise Problem(413, f"at most {self._limits.images} images are taken", code="too_large", param=param)
        data = self._bytes(param, uri[found.end() :])
        try:
            check_image(data, param, self._limits)
        except EdgeRuntimeError as error:
            raise of_code(error.code, str(error)) from None
        return {"type": "image", "image": data}

    def audio(self, param: str, base64: str) -> dict[str, Any]:
        """The content item of a recording in base64."""
        data = self._bytes(param, base64)
        try:
            check_audio(data, param)
        except EdgeRuntimeError as error:
            raise of_code(error.code, str(error)) from None
        return {"type": "audio", "audio": data}

    def _message(self, param: str, value: Any) -> Message:
        given = checks.mapping(param, value)
        role = checks.member(*ROLES)(f"{param}.role", given.get("role"))
        where, content = f"{param}.content", given.get("content")
        if role == "tool":
            call = checks.text(f"{param}.tool_call_id", given.get("tool_call_id"))
            return {"role": role, "tool_call_id": call, "content": _words(where, content)}
        message: Message = {"role": role, "content": self._content(where, content, role)}
        if role == "assistant" and given.get("tool_calls") is not None:
            calls = checks.items(f"{param}.tool_calls", given["tool_calls"], MOST_CALLS)
            message["tool_calls"] = [_call(f"{param}.tool_calls[{n}]", call) for n, call in enumerate(calls)]
        if not message["content"] and not message.get("tool_calls"):
            raise bad(where, "must be a string or a list of content parts")
        return message

    def _content(self, param: str, value: Any, role: str) -> list[dict[str, Any]]:
        if isinstance(value, str):
            return [{"type": "text", "text": value}]
        if value is None and role == "assistant":  # it called tools
            return []
        parts = checks.items(param, value, MOST_PARTS, 1)
        return [self._part(f"{param}[{index}]", part, role) for index, part in enumerate(parts)]

    def _part(self, param: str, value: Any, role: str) -> dict[str, Any]:
        part = checks.mapping(param, value)
        known = ("text", "image_url", "input_audio") if role == "user" else ("text", "refusal")
        kind = checks.member(*known)(f"{param}.type", part.get("type"))
        if kind == "image_url":
            holder = checks.mapping(f"{param}.image_url", part.get("image_url"))
            return self.image(f"{param}.image_url.url", checks.text(f"{param}.image_url.url", holder.get("url")))
        if kind == "input_audio":
            holder = checks.mapping(f"{param}.input_audio", part.get("input_audio"))
            where = f"{param}.input_audio.data"
            return self.audio(where, checks.text(where, holder.get("data")))
        return {"type": "text", "text": checks.text(f"{param}.{kind}", part.get(kind))}

    def _bytes(self, param: str, base64: str) -> bytes:
        self.media += len(base64)
        try:
            return base64_bytes(base64, param, self._limits)
        except EdgeRuntimeError as error:
            raise of_code(error.code, str(error)) from None


def _words(param: str, value: Any) -> str:
    """What a tool gave: a string, or text parts."""
    if isinstance(value, str):
        return value
    parts = [checks.mapping(f"{param}[{n}]", part) for n, part in enumerate(checks.items(param, value, MOST_PARTS, 1))]
    return "".join(checks.text(f"{param}[{n}].text", part.get("text")) for n, part in enumerate(parts))


def _call(param: str, value: Any) -> dict[str, Any]:
    call = checks.mapping(param, value)
    function = checks.mapping(f"{param}.function", call.get("function"))
    return {
        "id": checks.text(f"{param}.id", call.get("id")),
        "type": "function",
        "function": {
            "name": checks.text(f"{param}.function.name", function.get("name")),
            "arguments": checks.text(f"{param}.function.arguments", function.get("arguments")),
        },
    }
