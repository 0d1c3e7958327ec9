"""The next token from its logits: penalties, then temperature, top-k, top-p and min-p, as transformers orders them."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray


class Sampler:
    """Chooses tokens. The same seed, prompt and logits give the same tokens.

    Raises:
        EdgeRuntimeError: A setting outside its range.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        prompt: Iterable[int] = (),
    ) -> None:
        """Checks the settings.

        Args:
            temperature: Divides the logits; 0 takes the likeliest token.
            top_k: Only the `top_k` likeliest tokens are considered; 0: all.
            top_p: Only the likeliest tokens that together have this probability are considered; 1: all.
            min_p: Only tokens at least this likely are considered, as a share of the likeliest one's; 0: all.
            repetition_penalty: Logits of tokens that have occurred, in the prompt too, are divided by it, negative ones
                multiplied (Keskar et al. 2019, section 4.1); 1: none.
            presence_penalty: Is taken off the logits of tokens of the answer (OpenAI's definition, as the next one).
            frequency_penalty: Is taken off the logits of tokens of the answer, once for each time.
            logit_bias: Is added to the logits of these token ids, from -100 (never) to 100.
            seed: None for a fresh one.
            prompt: Token ids that `repetition_penalty` looks at, beside the answer.
        """
        _check("temperature", temperature, 0)
        _check("top_p", top_p, 0, 1, above=True)
        _check("min_p", min_p, 0, 1)
        _check("top_k", top_k, 0)
        _check("repetition_penalty", repetition_penalty, 0, above=True)
        _check("presence_penalty", presence_penalty, -2, 2)
        _check("frequency_penalty", frequency_penalty, -2, 2)
        if seed is not None:
            _check("seed", seed, 0)
        for token, bias in (logit_bias or {}).items():
            _check(f"logit_bias of {token}", bias, -100, 100)
        self._temperature, self._top_k, self._top_p, self._min_p = temperature, top_k, top_p, min_p
        self._repetition, self._presence, self._frequency = repetition_penalty, presence_penalty, frequency_penalty
        self._bias = {int(token): bias for token, bias in (logit_bias or {}).items()}
        self._random = np.random.default_rng(seed)
        self._seen = set(prompt) if repetition_penalty != 1 else set()
        self._counts: Counter[int] = Counter()
        self._remembers = repetition_penalty != 1 or bool(presence_penalty) or bool(frequency_penalty)

    def push(self, token: int) -> None:
        """Takes the token that was chosen: penalties look at it."""
        if self._remembers:
            self._seen.add(token)
            self._counts[token] += 1

    def pick(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token.

        Args:
            logits: float32 `[vocab]`; left as they are.
            allowed: `[vocab]`, tokens that may be chosen, at least one; None: all.
        """
        logits = self.adjusted(logits)
        if allowed is None:
            return self._choose(logits)
        among = np.flatnonzero(allowed)
        return int(among[self._choose(logits[among])])

    def adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits with penalties and bias, float32 `[vocab]`; the same array where there are none."""
        if not self._bias and not self._seen and not self._counts:
            return logits
        logits = logits.copy()
        if self._bias:
            known = [token for token in self._bias if 0 <= token < len(logits)]
            logits[known] += np.array([self._bias[token] for token in known], np.float32)
        if self._repetition != 1:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            found = logits[seen]
            logits[seen] = np.where(found < 0, found * self._repetition, found / self._repetition)
        if self._presence or self._frequency:
            tokens = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[tokens] -= np.float32(self._presence) + np.float32(self._frequency) * counts
        return logits

    def _choose(self, logits: NDArray[np.float32]) -> int:
        """Index of the choice."""
        if self._temperature == 0 or len(logits) == 1:
            return int(logits.argmax())
        candidates = self._candidates(logits)
        weights = np.exp((logits[candidates] - logits[candidates[0]]).astype(np.float64) / self._temperature)
        cumulative = np.cumsum(weights)
        kept = len(candidates)
        if self._top_p < 1:
            # The token that crosses the threshold still belongs.
            kept = int(np.searchsorted(cumulative, self._top_p * cumulative[-1])) + 1
        if self._min_p > 0:
            kept = min(kept, int((weights >= self._min_p).sum()))  # the first weight is 1, and they fall
        candidates, cumulative = candidates[:kept], cumulative[:kept]
        chosen = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(candidates[min(int(chosen), len(candidates) - 1)])

    def _candidates(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """Indices of the tokens considered, likeliest first."""
        if 0 < self._top_k < len(logits):
            best = np.argpartition(logits, -self._top_k)[-self._top_k :]
        else:
            best = np.arange(len(logits))
        ordered: NDArray[np.int64] = best[np.argsort(-logits[best], kind="stable")]
        return ordered


def log_probabilities(logits: NDArray[np.float32], token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """What the model itself holds likely, before temperature and everything else: natural logarithms.

    Args:
        logits: float32 `[vocab]`.
        token: The one that was chosen.
        top: How many of the likeliest tokens to name.

    Returns:
        That of `token`; (token, its logarithm) of the likeliest, in order.
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    total = float(np.log(np.exp(shifted).sum()))
    top = min(top, len(logits))
    best = np.argpartition(shifted, -top)[-top:] if top else np.empty(0, np.int64)
    ordered = best[np.argsort(-shifted[best], kind="stable")]
    return float(shifted[token]) - total, [(int(index), float(shifted[index]) - total) for index in ordered]


def _check(name: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Refuses what is not a number from `low` (or `above` it) to `high`."""
    if not isinstance(value, (int, float)) or not math.isfinite(value) or not low <= value <= high:
        pass
    elif value != low or not above:
        return
    least = f"above {low:g}" if above else f"{low:g} or more"
    span = (
        f"{least}" if high == math.inf else f"{least}, and at most {high:g}" if above else f"from {low:g} to {high:g}"
    )
    raise EdgeRuntimeError(f"{name} is {value}; it must be {span}")
