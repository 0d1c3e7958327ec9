"""Tools: their declarations as callers give them, and the calls that a model writes.

A call is `call:NAME{key:value,...}`; a value is a string between two quote tokens `<|"|>`, a number, true, false, null,
a list `[..]` or an object `{..}`. Strings may hold any character: they are told apart by the quote token, not by text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DEPTH = 32


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for: `{"name", "arguments"}`."""

    name: str
    arguments: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The call as the command line, MQTT and Python hand it out."""
        return {"name": self.name, "arguments": self.arguments}


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, `{"type": "function", "function": {...}}`; a bare function object is wrapped.

    Raises:
        EdgeRuntimeError: Not a list of those.
    """
    if not isinstance(tools, (list, tuple)):
        raise EdgeRuntimeError("tools must be a list of JSON objects")
    checked = []
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool, dict):
            raise EdgeRuntimeError(f"tool {number} is not a JSON object")
        function = tool.get("function", tool if "name" in tool else None)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise EdgeRuntimeError(f'tool {number} has no function name: {{"type": "function", "function": {{...}}}}')
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, dict):
            raise EdgeRuntimeError(f"tool {function['name']}: parameters must be a JSON schema object")
        # What is there keeps its order: a template may print a tool as JSON.
        absent = {"description": ""} if "description" not in function else {}
        if "type" not in parameters:
            parameters = {**parameters, "type": "object"}
        checked.append({"type": "function", "function": {**function, **absent, "parameters": parameters}})
    return checked


def parse_call(pieces: Sequence[str]) -> ToolCall:
    """Reads a call.

    Args:
        pieces: The text between the call's two markers, split at the quote tokens: even pieces are syntax, odd ones
            the contents of strings.

    Raises:
        ValueError: Not a call.
    """
    reader = _Reader(pieces)
    if not reader.take("call:"):
        raise ValueError("a call begins with call:")
    name = reader.word("{").strip()
    if not name:
        raise ValueError("a call has a name")
    arguments = reader.mapping(0)
    if not reader.at_end():
        raise ValueError("something follows the call")
    return ToolCall(name, arguments)


class _Reader:
    """A cursor over syntax pieces (even) and string pieces (odd)."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces
        self._piece = 0
        self._offset = 0

    @property
    def _rest(self) -> str:
        return self._pieces[self._piece][self._offset :]

    def at_end(self) -> bool:
        return self._piece == len(self._pieces) - 1 and not self._rest.strip()

    def take(self, literal: str) -> bool:
        """Steps over `literal` and the blanks before it, if it comes next."""
        rest = self._rest
        blanks = len(rest) - len(rest.lstrip())
        if not rest.startswith(literal, blanks):
            return False
        self._offset += blanks + len(literal)
        return True

    def word(self, ends: str) -> str:
        """Text up to one of the characters `ends`, which must come."""
        rest = self._rest
        stop = next((i for i, char in enumerate(rest) if char in ends), None)
        if stop is None:
            raise ValueError(f"one of {ends} is missing")
        self._offset += stop
        return rest[:stop]

    def string(self) -> str | None:
        """A quoted string, if it comes next."""
        if self._rest.strip():
            return None
        if self._piece + 2 >= len(self._pieces):
            raise ValueError("a value is missing, or a string does not end")
        content = self._pieces[self._piece + 1]
        self._piece, self._offset = self._piece + 2, 0
        return content

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        quoted = self.string()
        if quoted is not None:
            return quoted
        rest = self._rest.lstrip()
        if rest[0] == "{":
            return self.mapping(depth + 1)
        if rest[0] == "[":
            return self.sequence(depth + 1)
        if rest[0] == '"':  # not Gemma's way, but what a small model may write
            text, length = json.JSONDecoder().raw_decode(rest)
            self._offset += len(self._rest) - len(rest) + length
            return text
        return _scalar(self.word(",}]").strip())

    def mapping(self, depth: int) -> dict[str, Any]:
        if not self.take("{"):
            raise ValueError("{ is missing")
        result: dict[str, Any] = {}
        if self.take("}"):
            return result
        while True:
            key = self.string()
            if key is None:
                key = self.word(":").strip().strip('"')
            if not self.take(":"):
                raise ValueError("a key has no value")
            result[key] = self.value(depth)
            if self.take("}"):
                return result
            if not self.take(","):
                raise ValueError(", or } is missing")

    def sequence(self, depth: int) -> list[Any]:
        if not self.take("["):
            raise ValueError("[ is missing")
        result: list[Any] = []
        if self.take("]"):
            return result
        while True:
            result.append(self.value(depth))
            if self.take("]"):
                return result
            if not self.take(","):
                raise ValueError(", or ] is missing")


def _scalar(word: str) -> Any:
    """A number, true, false or null; any other bare word is a string without its quotes."""
    if not word:
        raise ValueError("a value is missing")
    constants = {"true": True, "false": False, "null": None, "None": None, "True": True, "False": False}
    if word in constants:
        return constants[word]
    for kind in (int, float):
        try:
            number = kind(word)
        except ValueError:
            continue
        # inf, nan and 1_000 are Python's idea of numbers, not a model's.
        return number if word.lstrip("+-")[0] in ".0123456789" and "_" not in word else word
    return word
