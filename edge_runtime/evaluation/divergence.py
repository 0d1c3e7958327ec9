"""How far one distribution over the vocabulary is from another, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VALUES = 4 << 20
"""Logits converted to float64 at a time: 32 MiB of each model's."""


@dataclass(frozen=True)
class Divergence:
    """What a candidate's logits are worth beside a reference's.

    Attributes:
        kl: KL(reference || candidate) at each token, in nats, float64 `[n]`.
        same_top: Whether both hold the same token likeliest, bool `[n]`.
    """

    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]

    @property
    def tokens(self) -> int:
        """How many tokens were compared."""
        return len(self.kl)

    @property
    def mean(self) -> float:
        """Mean KL divergence."""
        return float(self.kl.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean, tokens taken as independent."""
        return float(self.kl.std(ddof=1) / np.sqrt(self.tokens)) if self.tokens > 1 else 0.0

    @property
    def top1(self) -> float:
        """Share of tokens at which both hold the same one likeliest."""
        return float(self.same_top.mean())

    def quantile(self, share: float) -> float:
        """The KL divergence that `share` of the tokens do not exceed, between two tokens interpolated."""
        return float(np.quantile(self.kl, share))

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "tokens": self.tokens,
            "mean": self.mean,
            "error": self.error,
            "p99": self.quantile(0.99),
            "p999": self.quantile(0.999),
            "max": float(self.kl.max()),
            "top1": self.top1,
        }


def diverge(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> Divergence:
    """Compares two models' logits at the same tokens.

    All sums are in float64, over a few tokens at a time.

    Args:
        reference: float32 `[n, vocab]`.
        candidate: float32 `[n, vocab]`.
    """
    count, vocab = reference.shape
    step = max(1, _VALUES // vocab)
    kl = np.empty(count, np.float64)
    for start in range(0, count, step):
        p, q = (_log_softmax(logits[start : start + step]) for logits in (reference, candidate))
        kl[start : start + step] = np.einsum("nv,nv->n", np.exp(p), p - q)
    # Equal distributions can come out as -1e-17.
    return Divergence(np.maximum(kl, 0.0), reference.argmax(-1) == candidate.argmax(-1))


def join(parts: list[Divergence]) -> Divergence:
    """All tokens of `parts`, of which there is at least one."""
    return Divergence(np.concatenate([p.kl for p in parts]), np.concatenate([p.same_top for p in parts]))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted
