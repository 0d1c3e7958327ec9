"""Reads a model's answer token by token: what the user sees, its thoughts, its tool calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.gemma.tokenizer import Detokenizer
from edge_runtime.gemma.tools import ToolCall, parse_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.gemma.tokenizer import Tokenizer

THOUGHT_CHANNEL = "thought"


class OutputParser:
    """A streaming parser: `push` each id, then `finish`.

    Control tokens are told by id, so none of them leaks into the text, whole or in part. Text in the channel `thought`
    and tool calls are kept apart; a call that cannot be read is given as text, without its markers.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._control = tokenizer.control
        self._detokenizer = Detokenizer(tokenizer)
        self._header: str | None = None  # the first line of a channel, its name, while it is being read
        self._thought: list[str] | None = None  # the open thought
        self._thoughts: list[str] = []
        self._call: list[list[int]] | None = None  # the open call's ids, split at the quote tokens
        self.tool_calls: list[ToolCall] = []
        channel = [i for i in prompt if i in (self._control.channel_open, self._control.channel_close)]
        if channel and channel[-1] == self._control.channel_open:
            self._thought = []  # the template has opened it already

    @property
    def thoughts(self) -> str:
        """What the model thought so far, without the channel's markers."""
        return "\n".join(part for part in (*self._thoughts, "".join(self._thought or ()).strip()) if part)

    def push(self, token: int) -> str:
        """Takes one id; returns the text for the user that is complete with it, often ""."""
        control = self._control
        if self._call is not None:
            return self._push_call(self._call, token)
        if self._tokenizer.is_special(token):
            if token in (control.call_open, control.channel_open, control.channel_close):
                self._end_part()
            if token == control.call_open:
                self._call = [[]]
            elif token == control.channel_open:
                self._header = ""
            return ""
        text = self._detokenizer.push(token)
        if self._header is not None:
            name, newline, text = (self._header + text).partition("\n")
            if not newline:
                self._header = name
                return ""
            self._header = None
            if name.strip() == THOUGHT_CHANNEL:
                self._thought = []
        if self._thought is not None:
            self._thought.append(text)
            return ""
        return text

    def finish(self) -> None:
        """Ends the answer; a call or a character cut off in the middle is dropped."""
        self._call = None
        self._end_part()

    def _end_part(self) -> None:
        self._detokenizer.reset()
        if self._thought is not None:
            self._thoughts.append("".join(self._thought).strip())
        self._header = self._thought = None

    def _push_call(self, call: list[list[int]], token: int) -> str:
        if token == self._control.quote:
            call.append([])
        elif token == self._control.call_close:
            self._call = None
            pieces = [self._tokenizer.decode(ids) for ids in call]
            try:
                self.tool_calls.append(parse_call(pieces))
            except ValueError:
                return '"'.join(pieces)
        else:
            call[-1].append(token)  # stray control tokens among them are skipped when the call is decoded
        return ""
