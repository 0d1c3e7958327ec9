"""Prompts read once, for several decoders that are to get the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.evaluation.exchanges import Exchange
    from edge_runtime.evaluation.kld import Reader, Reading


class Readings:
    """Every exchange as its tokens and soft tokens, made once."""

    def __init__(self, reader: Reader, exchanges: Sequence[Exchange]) -> None:
        self._kept = {exchange.where: reader.read(exchange) for exchange in exchanges}

    def read(self, exchange: Exchange) -> Reading:
        """See Reader."""
        return self._kept[exchange.where]
