"""Tokens to pieces: one answer from its first token to its finish reason, whatever makes the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.engine.stops import StopStrings
from edge_runtime.gemma.output import OutputParser

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from edge_runtime.engine.protocol import FinishReason
    from edge_runtime.engine.speculative import Guesses
    from edge_runtime.gemma.tokenizer import Tokenizer


class Answer:
    """Takes tokens until `done`, then `finish`.

    Attributes:
        parser: Holds thoughts and tool calls.
        tokens: Tokens taken so far, the one that ended the answer among them.
        done: Whether the answer is complete.
        called: The tool call that the last token completed.
        guesses: Where tokens were guessed ahead: what came of it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        ends: Collection[int],
        stop: Sequence[str],
        max_tokens: int,
    ) -> None:
        """Prepares for the answer to `prompt`; it ends at a token of `ends`, a string of `stop` or `max_tokens`."""
        self.parser = OutputParser(tokenizer, prompt)
        self.tokens = 0
        self.done = False
        self.called: dict[str, Any] | None = None
        self.guesses: Guesses | None = None
        self._stops = StopStrings(stop)
        self._ends, self._max_tokens = ends, max_tokens
        self._cut = False

    def push(self, token: int) -> str:
        """Takes a token; returns the text that may be shown now."""
        self.tokens += 1
        self.called = None
        if token in self._ends:
            self.done = True
            return ""
        calls = len(self.parser.tool_calls)
        text = self._stops.push(self.parser.push(token))
        if len(self.parser.tool_calls) > calls:
            self.called = self.parser.tool_calls[-1].to_json()
        self._cut = self.tokens >= self._max_tokens and not self._stops.stopped
        self.done = self._stops.stopped or self._cut
        return text

    def finish(self) -> tuple[str, FinishReason]:
        """The text still held back, and why the answer ended."""
        self.parser.finish()
        tail = self._stops.finish()
        if self._cut:
            return tail, "length"
        return tail, "tool_calls" if self.parser.tool_calls else "stop"
