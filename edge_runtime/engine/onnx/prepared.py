"""A request on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.engine.protocol import Usage

if TYPE_CHECKING:
    import threading

    from edge_runtime.engine.answer import Answer
    from edge_runtime.engine.choosing import Chooser
    from edge_runtime.engine.onnx.prompts import Ready
    from edge_runtime.gemma.chat import Prompt


@dataclass(frozen=True)
class Prepared:
    """A request that was checked and can run.

    Attributes:
        ready: Its prompt and media.
        sampler: Chooses tokens.
        answer: Collects them.
        cancel: Ends the work when set.
        speculative: Whether to guess ahead.
    """

    ready: Ready
    sampler: Chooser
    answer: Answer
    cancel: threading.Event | None
    speculative: bool = False

    @property
    def prompt(self) -> Prompt:
        """Token ids, with a span for each image and sound."""
        return self.ready.prompt

    def usage(self, cached: int) -> Usage:
        """Tokens so far; `cached` of the prompt were not read again."""
        counts = Usage(prompt_tokens=len(self.prompt.ids), completion_tokens=self.answer.tokens, cached_tokens=cached)
        if self.ready.dropped:
            counts["dropped_turns"] = self.ready.dropped
        if (guesses := self.answer.guesses) is not None:
            counts["drafted_tokens"], counts["accepted_tokens"] = guesses.drafted, guesses.accepted
        return counts
