"""One thing a person says to the box, as it is spoken and as it is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

try:
    from . import lexicon as lx
except ImportError:  # run from inside the folder, as on a machine without the repository
    import lexicon as lx  # type: ignore[import-not-found, no-redef]

_PROPER = {*lx.CITIES, *lx.DAYS, *lx.COUNTRIES, *lx.PEOPLE, *(name.lower() for name in lx.NAMES)}


@dataclass(frozen=True)
class Utterance:
    """One thing a person says."""

    spoken: str
    """Lower-case words, letters and spaces only, as a synthesizer reads them."""
    written: str
    """The transcript: digits, capitals, full stop or question mark."""
    kind: str
    """cmd, faq, math, unknown, imgq, general, salad or digits."""
    tool: str | None = None
    """The tool a command calls."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """That call's arguments."""
    answer: str | None = None
    """The written answer of a question."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


def capitalise(text: str) -> str:
    """Proper names and "I" with a capital."""
    return " ".join("I" if word == "i" else word.capitalize() if word in _PROPER else word for word in text.split())


def make(spoken: str, written: str | None = None, *, question: bool = False, kind: str, **rest: Any) -> Utterance:
    """An utterance from its spoken form; `written` where it differs in more than capitals and the last mark."""
    text = capitalise(written or spoken)
    return Utterance(spoken, text[0].upper() + text[1:] + ("?" if question else "."), kind, **rest)
