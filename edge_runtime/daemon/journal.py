"""How the daemon's log is written: one line each, `key=value`, without floods.

Under systemd each line begins with its priority (sd-daemon(3)) and the journal adds time and name. Elsewhere it begins
with level and logger. What others say (ids, names of devices) is escaped: nobody can make up a line.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any

FORMATS = ("text", "json")
# How long the same warning is not written again; how many of a kind are written in that time; kinds remembered.
QUIET_S = 60.0
VARIANTS = 5
MOST_REMEMBERED = 256

_PLAIN = re.compile(r"[^\s\"=\\]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """`log.info("request", extra=fields(id="7"))` writes `request id=7`; what is None is left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


class Formatter(logging.Formatter):
    """A line of text with `key=value` behind it, or a JSON object."""

    def __init__(self, *, as_json: bool = False, journal: bool = False) -> None:
        """Args: which of the two; whether lines go to the journal."""
        super().__init__()
        self._json, self._journal = as_json, journal

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, and the lines of its traceback if it has one."""
        values: dict[str, Any] = getattr(record, "fields", {})
        logger = record.name.removeprefix("edge_runtime.")
        if self._json:
            text = self._object(record, logger, values)
        else:
            pairs = "".join(f" {name}={_value(value)}" for name, value in values.items())
            start = f"{logger}: " if self._journal else f"{record.levelname} {logger}: "
            text = _escaped(f"{start}{record.getMessage()}") + pairs
            if record.exc_info:
                text += "\n" + self.formatException(record.exc_info)
        if not self._journal:
            return text
        prefix = f"<{priority(record.levelno)}>"
        return "\n".join(prefix + line for line in text.splitlines())

    def _object(self, record: logging.LogRecord, logger: str, values: dict[str, Any]) -> str:
        level = record.levelname.lower()
        body = {"time": round(record.created, 3), "level": level, "logger": logger, "message": record.getMessage()}
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return json.dumps({**body, **values}, ensure_ascii=True, default=str)


class Calm(logging.Filter):
    """Lets the same warning or error through once a minute, and a few that differ only in what stands in their blanks.

    Ten thousand clients with a bad topic each are a handful of lines, too. The next line that is written says how many
    were left out.
    """

    def __init__(self, quiet_s: float = QUIET_S) -> None:
        super().__init__()
        self._quiet_s = quiet_s
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.levelno < logging.WARNING:
            return True
        now, key = time.monotonic(), (record.name, str(record.msg))
        kind = self._kinds.get(key)
        if kind is None or now >= kind.until:
            left_out = kind.left_out if kind else 0
            if len(self._kinds) >= MOST_REMEMBERED:
                self._kinds.clear()
            self._kinds[key] = kind = _Kind(now + self._quiet_s)
            if left_out:
                record.fields = {**getattr(record, "fields", {}), "left_out": left_out}
        message = record.getMessage()
        if message in kind.said or len(kind.said) >= VARIANTS:
            kind.left_out += 1
            return False
        kind.said.add(message)
        return True


@dataclass(slots=True)
class _Kind:
    """One thing that the program says: until when it is to be calm, what it said, how often it was not let through."""

    until: float
    said: set[str] = field(default_factory=set)
    left_out: int = 0


def set_up(level: str = "info", form: str = "text") -> None:
    """Sends the log to stderr from now on; called again, changes it.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `text` or `json`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(as_json=form == "json", journal=to_journal()))
    handler.addFilter(Calm())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("edge_runtime").setLevel(level.upper())


def to_journal() -> bool:
    """Whether stderr goes to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def priority(level: int) -> int:
    """The priority of syslog(3) for a level of logging."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: json.dumps(match[0])[1:-1], text)
