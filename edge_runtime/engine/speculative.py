"""Several tokens a step: guesses that the model checks all at once, exactly as if it had written them one by one.

Each position's token is chosen from the model's own logits by the same sampler as without guesses, and a guess counts
only if it is that very token. So the answer is the same, token by token and for the same seed; for one guess a position
this accepts as often as the rejection rule of Leviathan et al. 2023 does. Guesses are looked up in what was read and
written so far (Saxena 2023), or come from a drafter.

Knows numbers and functions only, nothing of ONNX Runtime.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

MOST = 4
"""Guesses in a step at most."""
COSTS = (1.0, 1.27, 1.78, 2.25, 2.68)
"""Time of a step over 1, 2, .. tokens against one over 1, until it is measured; these are E2B's in int4 on AVX2."""
GRAM = 3
"""Tokens that must have stood together before for what followed them to be a guess."""
MARGIN = 1.04
"""Guesses must be worth this much more than none."""
REST = 48
"""Steps without guesses, after they lost, until they are tried again."""
CHECK = 32
"""Every so many steps one without guesses, so that their worth is measured against something."""
DRAFTING = 0.1
"""Time of making a guess against a step over one token, until it is measured."""
WEIGHT = 0.05
"""Of the newest guess in the share of right ones."""
LAST = 9
"""Times of each kind of which the median counts: what is slow may have waited for another program."""


class Drafts(Protocol):
    """Where guesses come from."""

    def propose(self, token: int) -> Sequence[int]:
        """Guesses at what follows `token`, which was chosen last; none, where they would not pay."""

    def note(self, accepted: int, seconds: float) -> None:
        """Hears how many of the last guesses were right, and how long the step over them took."""


def decode(
    logits: NDArray[np.float32],
    step: Callable[[Sequence[int]], NDArray[np.float32]],
    back: Callable[[int], None],
    pick: Callable[[NDArray[np.float32]], int],
    drafts: Drafts,
) -> Generator[int, None, None]:
    """Tokens without end.

    Args:
        logits: float32 `[n, vocab]`; the last row is that after the prompt.
        step: Reads tokens, gives the logits after each, float32 `[tokens, vocab]`.
        back: Forgets the last tokens that were read, so many.
        pick: Chooses a token; is called once for each token of the answer, in order.
        drafts: Makes guesses.
    """
    token = pick(logits[-1])
    while True:
        yield token
        guesses = drafts.propose(token)
        started = time.perf_counter()
        logits = step([token, *guesses])
        seconds = time.perf_counter() - started
        accepted = 0
        token = pick(logits[0])
        while accepted < len(guesses) and token == guesses[accepted]:
            yield token
            accepted += 1
            token = pick(logits[accepted])
        if accepted < len(guesses):
            back(len(guesses) - accepted)
        drafts.note(accepted, seconds)


def gain(share: float, guesses: int, cost: float) -> float:
    """Tokens in the time of one step over one token.

    Args:
        share: Probability of each guess to be right.
        guesses: In a step.
        cost: Time of that step and of making its guesses, against a step over one token.
    """
    return sum(share**number for number in range(guesses + 1)) / cost


class Times:
    """How long steps over 1, 2, .. tokens take, and making a guess."""

    def __init__(self) -> None:
        self._last: dict[int, deque[float]] = {}
        self._seconds: dict[int, float] = {}
        self._begun: set[int] = set()

    def note(self, tokens: int, seconds: float) -> None:
        """One step more; 0 tokens: one guess that was made."""
        if tokens not in self._begun:  # the first of its kind opens and reserves things
            self._begun.add(tokens)
            return
        last = self._last.setdefault(tokens, deque(maxlen=LAST))
        last.append(seconds)
        self._seconds[tokens] = statistics.median(last)

    @property
    def known(self) -> bool:
        """Whether a step over one token was measured."""
        return 1 in self._seconds

    @property
    def drafting(self) -> float:
        """Making a guess, against a step over one token."""
        one, guess = self._seconds.get(1), self._seconds.get(0)
        return guess / one if one and guess else DRAFTING

    def cost(self, tokens: int) -> float:
        """Against a step over one token."""
        usual = COSTS[min(tokens, len(COSTS)) - 1]
        one, several = self._seconds.get(1), self._seconds.get(tokens)
        return several / one if one and several else usual


class Pace:
    """How many guesses are worth their time; answers are short, so it goes on from one to the next."""

    def __init__(self, times: Times, most: int = MOST, *, drafted: bool = False) -> None:
        """Begins hopeful.

        Args:
            times: Of the model's steps.
            most: Guesses at most.
            drafted: Whether guesses take time to make.
        """
        self._times, self._most, self._takes_time = times, most, drafted
        self._share = 0.7
        self._rest = self._count = 0

    def length(self) -> int:
        """Guesses to make now."""
        self._count += 1
        if not self._times.known or self._count % CHECK == 0:
            return 0
        if self._rest:
            self._rest -= 1
            return 1 if self._rest == 0 else 0
        best = max(range(self._most + 1), key=self._worth)
        if best and self._worth(best) < MARGIN:
            best = 0
        if best == 0:
            self._rest = REST
        return best

    def note(self, drafted: int, accepted: int) -> None:
        """What came of some guesses."""
        for number in range(min(drafted, accepted + 1)):  # those after the first wrong one say nothing
            self._share += WEIGHT * ((number < accepted) - self._share)

    def _worth(self, guesses: int) -> float:
        """Tokens in the time of one step over one token."""
        extra = guesses * self._times.drafting if self._takes_time else 0.0
        return gain(self._share, guesses, self._times.cost(guesses + 1) + extra) if guesses else 1.0


class Habits:
    """What a model's answers so far say of guesses.

    Attributes:
        times: Of its steps.
        paces: One for each source: `lookup`, and `drafter` where there is one.
    """

    def __init__(self) -> None:
        self.times = Times()
        self.paces = {"lookup": Pace(self.times), "drafter": Pace(self.times, drafted=True)}


class Lookup:
    """Guesses what follows from what followed the last time the same few tokens stood together."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._found: int | None = None
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """One token more."""
        self._tokens.append(token)
        self._found = None
        if len(self._tokens) >= GRAM:
            gram = tuple(self._tokens[-GRAM:])
            self._found = self._after.get(gram)
            self._after[gram] = len(self._tokens)

    def guess(self, count: int) -> list[int]:
        """What may follow, `count` tokens at most."""
        return [] if self._found is None else self._tokens[self._found : self._found + count]


class Guesses:
    """Looks guesses up, else has a drafter make them; as many as pay.

    Attributes:
        drafted: Guesses so far.
        accepted: Those that were right.
    """

    def __init__(
        self,
        prompt: Iterable[int],
        room: Callable[[], int],
        drafter: Callable[[int, int, int], Sequence[int]] | None = None,
        *,
        habits: Habits | None = None,
    ) -> None:
        """Takes what was read.

        Args:
            prompt: Its token ids.
            room: Tokens that the context still has room for.
            drafter: Is told the last token, how many of the guesses before were right, and how many are wanted.
            habits: What earlier answers said.
        """
        self._prompt, self._room, self._drafter = prompt, room, drafter
        self._habits = habits or Habits()
        self.drafted = self.accepted = 0
        self._source = "lookup"
        self._guesses: list[int] = []
        self._accepted = 0

    @cached_property
    def _lookup(self) -> Lookup:
        """Made when it is first asked, and by then the first token is out."""
        return Lookup(self._prompt)

    def propose(self, token: int) -> Sequence[int]:
        """See `Drafts`."""
        self._lookup.push(token)
        room = max(0, self._room() - 1)
        self._guesses = []
        self._source = "lookup"
        if self._lookup.guess(1):
            self._guesses = self._lookup.guess(min(room, self._habits.paces["lookup"].length()))
        elif self._drafter is not None:
            self._source = "drafter"
            if count := min(room, self._habits.paces["drafter"].length()):
                started = time.perf_counter()
                self._guesses = list(self._drafter(token, self._accepted, count))
                self._habits.times.note(0, (time.perf_counter() - started) / count)
        return self._guesses

    def note(self, accepted: int, seconds: float) -> None:
        """See `Drafts`."""
        for token in self._guesses[:accepted]:
            self._lookup.push(token)
        self._accepted = accepted
        self._habits.times.note(len(self._guesses) + 1, seconds)
        if self._guesses:
            self.drafted += len(self._guesses)
            self.accepted += accepted
            self._habits.paces[self._source].note(len(self._guesses), accepted)
