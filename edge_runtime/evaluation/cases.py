"""Reads an evaluation folder: `cases.jsonl`, one JSON object a line, beside the media that it names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["wer", "vision", "tools", "text"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FILE_NAME = "cases.jsonl"

# What a line must hold beside its group. "tools" cases say their prompt with "messages" or with "audio".
_FIELDS: dict[Kind, dict[str, type]] = {
    "wer": {"audio": str, "text": str},
    "vision": {"image": str, "question": str, "answer": str},
    "tools": {"tools": list, "calls": list},
    "text": {"messages": list, "answer": str},
}
_NAMES: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Case:
    """One thing to ask and what to expect.

    Attributes:
        line: Its line in the file, from 1.
        group: The part of the set that it is reported under.
        fields: The line as it stands, `audio` and `image` as paths.
    """

    line: int
    group: str
    fields: dict[str, Any]


def read_cases(folder: Path, kind: Kind, limit: int | None = None) -> list[Case]:
    """The cases of `folder`, in the file's order, checked.

    Args:
        folder: Holds cases.jsonl.
        kind: What the lines must hold.
        limit: At most so many cases of each group.

    Raises:
        EdgeRuntimeError: No such folder or file; a line that is not what `kind` asks for, named with its number.
    """
    path = folder / FILE_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        hint = f" (did you mean {folder / kind}?)" if (folder / kind / FILE_NAME).is_file() else ""
        raise EdgeRuntimeError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeRuntimeError(f"{path}: {error}") from None
    cases: list[Case] = []
    taken: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        case = _read(folder, kind, f"{path}:{number}", number, line)
        taken[case.group] = taken.get(case.group, 0) + 1
        if limit is None or taken[case.group] <= limit:
            cases.append(case)
    if not cases:
        raise EdgeRuntimeError(f"{path}: holds no cases")
    return cases


def _read(folder: Path, kind: Kind, where: str, number: int, line: str) -> Case:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise EdgeRuntimeError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(fields, dict):
        raise EdgeRuntimeError(f"{where}: must be an object, not {type(fields).__name__}")
    wanted: dict[str, type] = {"group": str, **_FIELDS[kind]}
    if kind == "tools":
        wanted |= {"audio": str} if "audio" in fields else {"messages": list}
    for key, expected in wanted.items():
        if key not in fields:
            raise EdgeRuntimeError(f'{where}: a {kind} case needs "{key}"')
        if not isinstance(fields[key], expected):
            raise EdgeRuntimeError(f'{where}: "{key}" must be {_NAMES[expected]}')
    for key in ("messages", "tools", "calls"):
        if not all(isinstance(entry, dict) for entry in fields.get(key, [])):
            raise EdgeRuntimeError(f'{where}: "{key}" must hold objects')
    for key in ("audio", "image"):
        if key in wanted:
            fields[key] = _media(folder, where, fields[key])
    return Case(number, fields["group"], fields)


def _media(folder: Path, where: str, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise EdgeRuntimeError(f"{where}: no such file {path}")
    return path
