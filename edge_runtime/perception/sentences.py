"""A text that is still being written, cut into sentences that can be spoken."""

from __future__ import annotations

import re
import unicodedata

LONG = 160
"""Characters after which a clause is spoken without waiting for its sentence."""
ABBREVIATIONS = frozenset(
    ("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "e.g", "i.e", "approx", "fig", "z.b", "d.h", "nr")
)
_END = re.compile(r"[.!?…。！？]+[\"'”’)\]»]*(?=\s)|[。！？]+|\n+")
_CLAUSE = re.compile(r"[,;:–—](?=\s)")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_CODE_WHOLE = re.compile(r"```.*?```", re.DOTALL)
_CODE = re.compile(r"```.*?(```|\Z)", re.DOTALL)
_LIST = re.compile(r"^\s*(?:[-*•+]|\d{1,2}[.)])\s+", re.MULTILINE)
_MARKS = re.compile(r"[*_`#>|~\[\]{}<]+")


class Sentences:
    """Takes text piece by piece, gives whole sentences as early as they are sure."""

    def __init__(self) -> None:
        """Nothing has been said."""
        self._text = ""

    def push(self, text: str) -> list[str]:
        """Takes the next piece; returns the sentences that it completes, ready to be spoken."""
        self._text = _CODE_WHOLE.sub(" ", self._text + text)
        sentences = []
        while end := self._first_end():
            sentences.append(spoken(self._text[:end]))
            self._text = self._text[end:]
        return [sentence for sentence in sentences if sentence]

    def finish(self) -> list[str]:
        """The rest, now that nothing follows."""
        rest, self._text = spoken(self._text), ""
        return [rest] if rest else []

    def _first_end(self) -> int:
        """Where the first sentence ends, 0 where none does yet."""
        # Of code that has only begun, nothing is spoken; one or two of the three marks may have come so far.
        text = self._text.partition("```")[0].rstrip("`")
        for match in _END.finditer(text):
            if not self._mid_sentence(match):
                return match.end()
        if len(text) > LONG:
            clauses = [match.end() for match in _CLAUSE.finditer(text[:LONG])]
            return clauses[-1] if clauses else text.rfind(" ", 0, LONG) + 1
        return 0

    def _mid_sentence(self, match: re.Match[str]) -> bool:
        """Whether the full stop belongs to an abbreviation, an initial or the number of a list."""
        if match[0] != ".":
            return False
        words = self._text[: match.start()].split()
        word = words[-1].lstrip("(\"'“").casefold() if words else ""
        initial = len(word) == 1 and word.isalpha() and word != "i"
        return initial or word in ABBREVIATIONS or (word.isdigit() and len(words) == 1)


def spoken(text: str) -> str:
    """`text` as it is read aloud, on one line: without the marks of Markdown, code, pictures and control characters."""
    text = _LIST.sub("", _LINK.sub(r"\1", _CODE.sub(" ", text)))
    text = _MARKS.sub(" ", text)
    text = "".join(character if unicodedata.category(character) not in SILENT else " " for character in text)
    text = " ".join(text.split())
    return text if any(character.isalnum() for character in text) else ""


SILENT = frozenset({"So", "Sk", "Cc", "Cf", "Co", "Cn", "Cs"})
"""Unicode categories that no voice should spell out; emoji are among them."""
