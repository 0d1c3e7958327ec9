"""The measures: each compares what a model said with what a case expects, and knows nothing of models or files."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# Numbers keep what joins their digits (10:30, 1.7) and a sign between two of them was said, as "plus" or "minus";
# letters keep an apostrophe inside (don't).
_WORD = re.compile(r"\d+(?:[.:]\d+)*|(?<=\d )[-+](?= \d)|[^\W\d_]+(?:'[^\W\d_]+)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


def words(text: str) -> list[str]:
    """The words that the word error rate counts: lower case, no punctuation, digits as written.

    >>> words("Wake me at 10:30 AM, don't wait!")
    ['wake', 'me', 'at', '10:30', 'am', "don't", 'wait']
    """
    plain = unicodedata.normalize("NFKC", text).replace("\u2019", "'").casefold()
    return _WORD.findall(_THOUSANDS.sub("", plain))


def edit_distance(found: Sequence[str], expected: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn `found` into `expected` (Levenshtein)."""
    row = list(range(len(expected) + 1))
    for i, left in enumerate(found, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(expected, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def same_answer(found: str, expected: str) -> bool:
    """Whether two short answers are the same but for case, spacing and a mark at the end."""
    return _answer(found) == _answer(expected)


def _answer(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".!? ")


def same_calls(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> bool:
    """Whether the calls are the same: names, order, arguments and their JSON types (5 and 5.0 are one number)."""
    return len(found) == len(expected) and all(
        left.get("name") == right.get("name") and _same(left.get("arguments", {}), right.get("arguments", {}))
        for left, right in zip(found, expected, strict=True)
    )


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)
