"""tokenizer.json as the library reads it in half the memory: each merge as one string, "a b", instead of two in a list.

The library takes both forms and makes the same of them. Where a token has a space in it the two are not the same, and
the file stays as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MERGES = re.compile(rb'"merges"\s*:\s*\[')
_STRING = rb'"((?:[^"\\ ]|\\.)*)"'
_PAIR = re.compile(rb"\s*\[\s*" + _STRING + rb"\s*,\s*" + _STRING + rb"\s*\]\s*(,|\])")
_SPACE = re.compile(rb"\\u0020")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies tokenizer.json, its merges in the form that takes less."""
    target.write_bytes(joined(source.read_bytes()))


def joined(text: bytes) -> bytes:
    """A tokenizer.json with every merge as one string; the same bytes where that cannot be."""
    found = _MERGES.search(text)
    if found is None or _SPACE.search(text, found.end()):
        return text
    out, at, end = bytearray(text[: found.end()]), found.end(), b","
    while end == b",":
        pair = _PAIR.match(text, at)
        if pair is None:
            return text
        first, second, end = pair.groups()
        out += b'"%b %b"%b' % (first, second, end)
        at = pair.end()
    return bytes(out + text[at:])
