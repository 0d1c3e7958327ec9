"""The next token from its logits: greedy, or temperature, then top-k, then top-p, as transformers orders them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Sampler:
    """Chooses tokens. The same seed and logits give the same tokens.

    Raises:
        EdgeRuntimeError: A setting outside its range.
    """

    def __init__(
        self, temperature: float = 0.0, *, top_k: int = 0, top_p: float = 1.0, seed: int | None = None
    ) -> None:
        """Checks the settings.

        Args:
            temperature: Divides the logits; 0 takes the likeliest token.
            top_k: Only the `top_k` likeliest tokens are considered; 0: all.
            top_p: Only the likeliest tokens that together have this probability are considered; 1: all.
            seed: None for a fresh one.
        """
        if not math.isfinite(temperature) or temperature < 0:
            raise EdgeRuntimeError(f"temperature is {temperature}; it must be 0 or more")
        if not 0 < top_p <= 1:
            raise EdgeRuntimeError(f"top_p is {top_p}; it must be above 0 and at most 1")
        if top_k < 0:
            raise EdgeRuntimeError(f"top_k is {top_k}; it must be 0 or more")
        if seed is not None and seed < 0:
            raise EdgeRuntimeError(f"seed is {seed}; it must be 0 or more")
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._random = np.random.default_rng(seed)

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token.

        Args:
            logits: float32 `[vocab]`; left as they are.
        """
        if self._temperature == 0:
            return int(logits.argmax())
        candidates = self._candidates(logits)
        weights = np.exp((logits[candidates] - logits[candidates[0]]).astype(np.float64) / self._temperature)
        cumulative = np.cumsum(weights)
        if self._top_p < 1:
            # The token that crosses the threshold still belongs.
            kept = int(np.searchsorted(cumulative, self._top_p * cumulative[-1])) + 1
            candidates, cumulative = candidates[:kept], cumulative[:kept]
        chosen = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(candidates[min(int(chosen), len(candidates) - 1)])

    def _candidates(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """Ids of the tokens considered, likeliest first."""
        if 0 < self._top_k < len(logits):
            best = np.argpartition(logits, -self._top_k)[-self._top_k :]
        else:
            best = np.arange(len(logits))
        ordered: NDArray[np.int64] = best[np.argsort(-logits[best], kind="stable")]
        return ordered
