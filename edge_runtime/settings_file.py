"""Reads settings: a TOML file and the environment against typed sections, every error with its line or variable."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENVIRONMENT_PREFIX = "EDGE_RUNTIME_"

_TOPIC_LEVEL = re.compile(r"[^+#/\x00]+")

Table = dict[str, Any]


def within(low: float, high: float) -> dict[str, Any]:
    """Field metadata: the values that are allowed, both ends included."""
    return {"low": low, "high": high}


def one_of(*values: str | int) -> dict[str, Any]:
    """Field metadata: the values that are allowed."""
    return {"values": values}


def secret(key: str, file: Path) -> str:
    """The first line of a file of secrets; a bare name is one of systemd's credentials.

    Args:
        key: The setting that names it, for errors.
        file: Its path or name.

    Raises:
        EdgeRuntimeError: It cannot be read.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(credentials) / file if credentials and len(file.parts) == 1 else file
    try:
        return path.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeRuntimeError(f"{key} {path}: {getattr(error, 'strerror', None) or error}") from None


def read(
    sections: Mapping[str, type[Any]],
    lists: Mapping[str, type[Any]],
    file: Path | None,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The sections, each as an instance of its dataclass, and for each of the `lists` a tuple of instances.

    Args:
        sections: Their names and dataclasses.
        lists: Those that may be there any number of times, `[[name]]`; each has a `name` of its own.
        file: TOML file; None: there is none.
        environment: Overrides.

    Raises:
        EdgeRuntimeError: A missing or broken file, an unknown key, a bad or a missing value.
    """
    return _Reader(sections, lists).read(file, environment)


class _Reader:
    def __init__(self, sections: Mapping[str, type[Any]], lists: Mapping[str, type[Any]]) -> None:
        self._kinds = {**sections, **lists}
        self._sections, self._lists = sections, lists
        # Values by section and number; where a section begins, by the same.
        self._values: dict[tuple[str, int], Table] = {(section, 0): {} for section in sections}
        self._places: dict[tuple[str, int], str] = {}

    def read(self, file: Path | None, environment: Mapping[str, str]) -> dict[str, Any]:
        if file is not None:
            self._read_file(file)
        self._read_environment(environment)
        made: dict[str, Any] = {name: kind(**self._values[name, 0]) for name, kind in self._sections.items()}
        for name in self._lists:
            made[name] = tuple(self._item(*place) for place in sorted(self._values) if place[0] == name)
            names = [item.name for item in made[name]]
            for index, item in enumerate(names):
                if item in names[:index]:
                    raise EdgeRuntimeError(f"{self._places[name, index]}: two of {name} have the name {item}")
        return made

    def _item(self, section: str, number: int) -> Any:
        kind, values = self._lists[section], self._values[section, number]
        for entry in dataclasses.fields(kind):
            needed = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
            if needed and entry.name not in values:
                raise EdgeRuntimeError(f"{self._places[section, number]}: {section}.{entry.name} is missing")
        return kind(**values)

    def _read_file(self, file: Path) -> None:
        text, tree = _parsed(file)
        for section, content in tree.items():
            listed = section in self._lists
            tables = content if isinstance(content, list) else [content]
            if section not in self._kinds or not all(isinstance(table, dict) for table in tables):
                line = _line_of(text, None, section)
                raise EdgeRuntimeError(f"{file}:{line}: unknown section [{section}] (there are {_listed(self._kinds)})")
            if listed != isinstance(content, list):
                brackets = f"[[{section}]]" if listed else f"[{section}]"
                raise EdgeRuntimeError(f"{file}:{_line_of(text, None, section)}: must be written {brackets}")
            for number, table in enumerate(tables):
                place = self._place(section, number, f"{file}:{_line_of(text, None, section, number)}")
                for key, value in table.items():
                    where = f"{file}:{_line_of(text, section, key, number)}"
                    place[key] = _checked(self._kinds, section, key, value, where)

    def _read_environment(self, environment: Mapping[str, str]) -> None:
        for name in sorted(environment):
            # Names without "__" (EDGE_RUNTIME_CACHE) are not settings.
            if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
                continue
            section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
            where = f"environment variable {name}"
            if section not in self._kinds:
                raise EdgeRuntimeError(f"{where}: unknown section {section} (there are {_listed(self._kinds)})")
            number = "0"
            if section in self._lists:
                number, _, key = key.partition("__")
                if not (number.isascii() and number.isdigit() and key):
                    wanted = f"{ENVIRONMENT_PREFIX}{section.upper()}__0__NAME"
                    raise EdgeRuntimeError(f"{where}: {section} are numbered from 0: {wanted}")
            place = self._place(section, int(number), where)
            place[key] = _checked(self._kinds, section, key, environment[name], where)

    def _place(self, section: str, number: int, where: str) -> Table:
        self._places.setdefault((section, number), where)
        return self._values.setdefault((section, number), {})


def _parsed(file: Path) -> tuple[str, Table]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EdgeRuntimeError(f"{file}: no such settings file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeRuntimeError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EdgeRuntimeError(f"{file}: not TOML: {error}") from None


def _checked(kinds: Mapping[str, type[Any]], section: str, key: str, value: object, where: str) -> object:
    """`value` as the type of the key, or an error that names `where`. Strings are parsed where a number is wanted."""
    fields = {entry.name: entry for entry in dataclasses.fields(kinds[section])}
    if key not in fields:
        raise EdgeRuntimeError(f"{where}: unknown key {section}.{key} (there are {_listed(fields)})")
    wanted = typing.get_type_hints(kinds[section])[key]
    if isinstance(wanted, types.UnionType):
        wanted = next(kind for kind in typing.get_args(wanted) if kind is not types.NoneType)
    try:
        result = _CONVERTERS[wanted](value, from_text=where.startswith("environment"))
    except ValueError as error:
        raise EdgeRuntimeError(f"{where}: {section}.{key} must be {error}, not {value!r}") from None
    rule = fields[key].metadata
    if "low" in rule and not rule["low"] <= result <= rule["high"]:
        raise EdgeRuntimeError(f"{where}: {section}.{key} must be from {rule['low']} to {rule['high']}, not {value!r}")
    if "values" in rule and result not in rule["values"]:
        raise EdgeRuntimeError(
            f"{where}: {section}.{key} must be one of {_listed(map(str, rule['values']))}, not {value!r}"
        )
    if "topic" in rule:
        levels = [result] if rule["topic"] == "one level" else result.split("/")
        if not all(_TOPIC_LEVEL.fullmatch(level) for level in levels):
            raise EdgeRuntimeError(f"{where}: {section}.{key} must be {rule['topic']} of an MQTT topic, not {value!r}")
    return result


def _integer(value: object, *, from_text: bool) -> int:
    if from_text and isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("a whole number")


def _number(value: object, *, from_text: bool) -> float:
    if from_text and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("a number") from None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError("a number")


def _truth(value: object, *, from_text: bool) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if from_text and isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _text(value: object, *, from_text: bool) -> str:  # noqa: ARG001  one shape for all converters
    if isinstance(value, str) and value:
        return value
    raise ValueError("a text")


def _path(value: object, *, from_text: bool) -> Path:
    try:
        return Path(_text(value, from_text=from_text)).expanduser()
    except ValueError:
        raise ValueError("a path") from None


def _texts(value: object, *, from_text: bool) -> tuple[str, ...]:
    if from_text and isinstance(value, str):
        return tuple(part for item in value.split(",") if (part := item.strip()))
    if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
        return tuple(value)
    raise ValueError("a list of texts")


def _table(value: object, *, from_text: bool) -> Table:
    if from_text and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if isinstance(value, dict):
        return value
    raise ValueError("a table" if not from_text else "a JSON object")


_CONVERTERS: dict[Any, Callable[..., Any]] = {
    bool: _truth,
    int: _integer,
    float: _number,
    str: _text,
    Path: _path,
    tuple[str, ...]: _texts,
    Table: _table,
}


def _line_of(text: str, section: str | None, key: str, number: int = 0) -> int:
    """The line on which `key` of `[section]` is set, or on which the section `key` begins where `section` is None.

    Where there are several of a section, `number` says which. tomllib keeps no positions, so this looks again at a text
    that is known to be sound TOML. A key inside an inline table gives the table's line; one that is written with
    escapes gives 1.
    """
    wanted = key if section is None else f"{section}.{key}"
    table = ""
    fallback = 1
    seen = {section or key: -1}
    for line_number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*(\[{1,2})([^\]]+)\]", line)
        assignment = re.match(r"([^=#]+)=", line)
        if header:
            name = table = re.sub(r"[\s\"']", "", header[2])
            if name in seen:
                seen[name] += 1
        elif assignment:
            name = ".".join(filter(None, [table, re.sub(r"[\s\"']", "", assignment[1])]))
        else:
            continue
        if number and number > seen[section or key]:  # one before it
            continue
        if name == wanted or name.startswith(f"{wanted}."):
            return line_number
        if name == section:
            fallback = line_number
    return fallback


def _listed(names: typing.Iterable[str]) -> str:
    return ", ".join(names)
