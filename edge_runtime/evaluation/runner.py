"""Asks a model every case and adds up the scores."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edge_runtime.evaluation import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from edge_runtime.evaluation.cases import Case, Kind

MAX_TOKENS = 128
"""Longer answers than any case expects are cut here."""


class Transcript(Protocol):
    """What `transcribe` returns, as far as it is used here."""

    @property
    def text(self) -> str:
        """The whole transcript."""


class Answerer(Protocol):
    """The part of `edge_runtime.Model` that evaluation needs."""

    def chat(
        self,
        messages: list[dict[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> Iterable[Any]:
        """Pieces with `text`; the last one may have `tool_calls`."""

    def transcribe(self, source: Path, /) -> Transcript:
        """Speech to text."""


@dataclass(frozen=True)
class Outcome:
    """One case after it was asked.

    Attributes:
        case: The case.
        found: What the model said: text, or a list of calls.
        expected: What the case asks for, in the same form.
        errors: Edits between the word lists (wer); otherwise 1 for a wrong answer, 0 for a right one.
        weight: Expected words (wer); otherwise 1.
        failure: Why the case could not be run; it then counts as all wrong.
    """

    case: Case
    found: Any
    expected: Any
    errors: int
    weight: int
    failure: str | None = None

    @property
    def right(self) -> bool:
        """Whether nothing was wrong."""
        return self.errors == 0 and self.failure is None


@dataclass(frozen=True)
class Score:
    """Sums over some cases. `rate` is the word error rate (wer) or the share of wrong answers."""

    cases: int
    right: int
    failed: int
    errors: int
    weight: int

    @property
    def rate(self) -> float:
        """Errors per expected word or answer."""
        return self.errors / max(1, self.weight)

    def to_dict(self, kind: Kind) -> dict[str, Any]:
        """Plain types for JSON: cases, failed, exact, and for wer the rate and the number of words."""
        out: dict[str, Any] = {"cases": self.cases, "failed": self.failed, "exact": round(self.right / self.cases, 4)}
        return ({"wer": round(self.rate, 4), "words": self.weight} if kind == "wer" else {}) | out


@dataclass(frozen=True)
class Report:
    """All outcomes of a run and how long it took."""

    kind: Kind
    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def total(self) -> Score:
        """The score over all cases."""
        return score(self.outcomes)

    @property
    def groups(self) -> dict[str, Score]:
        """The score of each group, in the order of the file."""
        names = dict.fromkeys(outcome.case.group for outcome in self.outcomes)
        return {name: score([o for o in self.outcomes if o.case.group == name]) for name in names}

    def to_dict(self, *, wrong: bool = False) -> dict[str, Any]:
        """Plain types for JSON; `wrong` adds the cases that were not right."""
        out: dict[str, Any] = {
            "kind": self.kind,
            **self.total.to_dict(self.kind),
            "seconds": round(self.seconds, 3),
            "groups": {name: part.to_dict(self.kind) for name, part in self.groups.items()},
        }
        failures = [o for o in self.outcomes if o.failure is not None]
        if failures:
            out["failures"] = [{"line": o.case.line, "group": o.case.group, "error": o.failure} for o in failures]
        if wrong:
            out["wrong"] = [
                {"line": o.case.line, "group": o.case.group, "expected": o.expected, "found": o.found}
                for o in self.outcomes
                if not o.right
            ]
        return out


def score(outcomes: Sequence[Outcome]) -> Score:
    """Adds up outcomes."""
    return Score(
        cases=len(outcomes),
        right=sum(o.right for o in outcomes),
        failed=sum(o.failure is not None for o in outcomes),
        errors=sum(o.errors for o in outcomes),
        weight=sum(o.weight for o in outcomes),
    )


def evaluate(
    model: Answerer, kind: Kind, cases: Sequence[Case], progress: Callable[[int, int], None] | None = None
) -> Report:
    """Runs `cases` one after the other, greedily.

    Args:
        model: Answers.
        kind: What the cases are.
        cases: From `cases.read_cases`.
        progress: Called with (done, total) before the first and after each case.
    """
    begun = time.perf_counter()
    outcomes: list[Outcome] = []
    for case in cases:
        if progress:
            progress(len(outcomes), len(cases))
        outcomes.append(_run(model, kind, case))
    if progress:
        progress(len(cases), len(cases))
    return Report(kind, tuple(outcomes), time.perf_counter() - begun)


def _run(model: Answerer, kind: Kind, case: Case) -> Outcome:
    failure: str | None = None
    found: Any = [] if kind == "tools" else ""
    try:
        found = _ask(model, kind, case.fields)
    except Exception as error:  # noqa: BLE001 - one case that breaks must not cost the scores of the others
        failure = " ".join(str(error).split()) or type(error).__name__
    if kind == "wer":
        expected = case.fields["text"]
        reference = metrics.words(expected)
        errors = len(reference) if failure else metrics.edit_distance(metrics.words(found), reference)
        return Outcome(case, found, expected, errors, len(reference), failure)
    if kind == "tools":
        expected = case.fields["calls"]
        right = failure is None and metrics.same_calls(found, expected)
    else:
        expected = case.fields["answer"]
        right = failure is None and metrics.same_answer(found, expected)
    return Outcome(case, found, expected, 0 if right else 1, 1, failure)


def _ask(model: Answerer, kind: Kind, fields: dict[str, Any]) -> Any:
    if kind == "wer":
        return model.transcribe(fields["audio"]).text.strip()
    if kind == "vision":
        content = [{"type": "image", "image": fields["image"]}, {"type": "text", "text": fields["question"]}]
        return _chat(model, [{"role": "user", "content": content}], fields)[0]
    if kind == "tools":
        spoken = {"role": "user", "content": [{"type": "audio", "audio": fields.get("audio")}]}
        return _chat(model, [spoken] if "audio" in fields else fields["messages"], fields)[1]
    return _chat(model, fields["messages"], fields)[0]


def _chat(model: Answerer, messages: list[dict[str, Any]], fields: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """(text, calls) of a greedy answer."""
    text: list[str] = []
    calls: list[dict[str, Any]] = []
    for piece in model.chat(messages, max_tokens=MAX_TOKENS, temperature=0.0, tools=fields.get("tools") or None):
        text.append(piece.text)
        calls += getattr(piece, "tool_calls", None) or []
    return "".join(text).strip(), calls
