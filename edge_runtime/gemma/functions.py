"""Python functions as tools: name, description and JSON schema from signature, type hints and docstring.

The same reading as transformers' `get_json_schema`, so that functions written for it are declared the same way; beyond
it, a function without type hints or docstring is taken as it is.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Union

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable

_SIMPLE: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_LISTS: tuple[Any, ...] = (list, tuple, set, frozenset)
_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns|Return|Raises|Yields|Examples?|Notes?):\s*$")
_ARGUMENT = re.compile(r"^(\s*)\**(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_CHOICES = re.compile(r"\(choices:\s*(\[.*\])\s*\)\s*$", re.DOTALL)


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    """A function as a tool in OpenAI's form.

    Raises:
        EdgeRuntimeError: It has no name, or a type hint that cannot be told apart in JSON.
    """
    name = getattr(function, "__name__", None)
    if not callable(function) or not name or name == "<lambda>":
        raise EdgeRuntimeError("a tool must be a function with a name, or a JSON object")
    try:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
    except (NameError, TypeError, ValueError) as error:
        raise EdgeRuntimeError(f"tool {name}: its type hints cannot be read: {error}") from None
    text, told = _docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        schema = _schema(hints.get(parameter.name, Any), f"tool {name}: {parameter.name}")
        if description := told.get(parameter.name, ""):
            schema |= _described(description)
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return {"type": "function", "function": {"name": name, "description": text, "parameters": schema}}


def _schema(hint: Any, where: str) -> dict[str, Any]:
    if hint is Any or hint is inspect.Parameter.empty:
        return {}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _union(arguments, where)
    if origin is Literal:
        return _enum(list(arguments), where)
    if origin is typing.Annotated:
        return _schema(arguments[0], where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum([member.value for member in hint], where)
    if hint in _LISTS or origin in _LISTS:
        inner = [argument for argument in arguments if argument is not Ellipsis]
        if origin is tuple and len(inner) > 1:
            parts = [_schema(argument, where) for argument in inner]
            return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
        items = _schema(inner[0], where) if inner else {}
        return {"type": "array", "items": items} if items else {"type": "array"}
    if hint is dict or origin is dict:
        values = _schema(arguments[1], where) if len(arguments) == 2 else {}
        return {"type": "object", "additionalProperties": values} if values else {"type": "object"}
    if typing.is_typeddict(hint):
        members = {key: _schema(value, where) for key, value in typing.get_type_hints(hint).items()}
        return {"type": "object", "properties": members, "required": sorted(hint.__required_keys__)}
    raise EdgeRuntimeError(f"{where}: no JSON stands for the type {getattr(hint, '__name__', hint)}")


def _union(arguments: tuple[Any, ...], where: str) -> dict[str, Any]:
    parts = [_schema(argument, where) for argument in arguments if argument is not type(None)]
    nullable = {"nullable": True} if type(None) in arguments else {}
    if len(parts) == 1:
        return parts[0] | nullable
    if all(set(part) == {"type"} for part in parts):
        return {"type": sorted(part["type"] for part in parts), **nullable}
    return {"anyOf": parts, **nullable}


def _enum(values: list[Any], where: str) -> dict[str, Any]:
    kinds = {type(value) for value in values if value is not None}
    if not kinds <= set(_SIMPLE):
        raise EdgeRuntimeError(f"{where}: its choices must be texts or numbers")
    names = sorted(_SIMPLE[kind] for kind in kinds)
    made: dict[str, Any] = {"type": names[0] if len(names) == 1 else names, "enum": values}
    return made


def _described(description: str) -> dict[str, Any]:
    """The description; `(choices: ["a", "b"])` at its end are an enum, as transformers has it."""
    found = _CHOICES.search(description)
    if found is None:
        return {"description": description}
    try:
        choices = [str(part).strip().strip("\"'") for part in found[1].strip("[]").split(",")]
    except ValueError:
        return {"description": description}
    return {"enum": choices, "description": description[: found.start()].strip()}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring of Google's style says of the function, and of each argument."""
    before: list[str] = []
    told: dict[str, str] = {}
    section, name, margin = "", "", None
    for line in text.splitlines():
        if found := _SECTION.match(line):
            section, name, margin = found[1], "", None
        elif not section:
            before.append(line)
        elif section in {"Args", "Arguments", "Parameters"} and line.strip():
            found = _ARGUMENT.match(line)
            if found and (margin is None or len(found[1]) <= margin):
                margin, name = len(found[1]), found[2]
                told[name] = found[3].strip()
            elif name:
                told[name] = f"{told[name]} {line.strip()}".strip()
    return "\n".join(before).strip(), told
