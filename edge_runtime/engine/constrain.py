"""Forms that an answer keeps to: JSON schema, regular expression, choice, tool call, as sets of tokens at each step.

llguidance does the work: it runs the grammar over the vocabulary as a trie of bytes and gives the tokens that may come
next, tens of microseconds at 262,144 tokens. Here are the words in which it is asked, and its errors in ours.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.engine.tool_grammar import call_grammar
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from edge_runtime.gemma.tokenizer import Tokenizer

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes: fewest tokens, and no way to write blanks for ever."""


class Form:
    """One text being written in a form: what may come next, what has come."""

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher, self._size = matcher, size
        self._bits = np.zeros((size + 31) // 32, np.int32)

    def allowed(self) -> NDArray[np.bool_]:
        """Tokens that may come next, bool `[vocab]`; those that end an answer only where the text is complete.

        Raises:
            EdgeRuntimeError: The form is too large to be followed.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little", count=self._size).view(np.bool_)

    def push(self, token: int) -> None:
        """Takes the next token.

        Raises:
            EdgeRuntimeError: It is not one of `allowed`.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EdgeRuntimeError(f"the answer's form cannot be kept to: {_line(self._matcher.get_error())}")


class Forms:
    """Makes forms for one tokenizer. The vocabulary is read when first asked: a second at 262,144 tokens, once."""

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int], size: int | None = None) -> None:
        """Nothing is read yet.

        Args:
            tokenizer: The bundle's.
            ends: Tokens that end an answer.
            size: Rows of the logits; None: the tokenizer's own size.
        """
        self._tokenizer, self._ends = tokenizer, sorted(ends)
        self._size = size or tokenizer.size

    def schema(self, schema: Mapping[str, Any]) -> Form:
        """JSON text that a JSON schema allows.

        Raises:
            EdgeRuntimeError: The schema is wrong, or has what cannot be held to.
        """
        try:
            text = json.dumps(schema)
        except (TypeError, ValueError) as error:
            raise EdgeRuntimeError(f"the schema is not JSON: {error}") from None
        return self._form("schema", self._library.LLMatcher.grammar_from_json_schema(text, overrides=JSON_STYLE))

    def regex(self, pattern: str) -> Form:
        """Text that matches a regular expression (the Rust kind: no look-around, no back-references) as a whole.

        Raises:
            EdgeRuntimeError: It is none.
        """
        if not isinstance(pattern, str) or not pattern:
            raise EdgeRuntimeError("regex must be a text that is not empty")
        return self._form("regex", self._library.LLMatcher.grammar_from_regex(pattern))

    def choice(self, choices: Sequence[str]) -> Form:
        """One of some texts.

        Raises:
            EdgeRuntimeError: There are none, or one is empty.
        """
        if isinstance(choices, str) or not choices or not all(isinstance(text, str) and text for text in choices):
            raise EdgeRuntimeError("choice must be a list of strings that are not empty")
        return self._lark("choice", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in choices))

    def call(self, tools: Sequence[Mapping[str, Any]]) -> Form:
        """A call of one of these tools, from behind `<|tool_call>` to `<tool_call|>`.

        Args:
            tools: As `gemma.tools.check_tools` gives them. What their schemas demand is demanded of the arguments, as
                far as the grammar of calls can say it; a schema that is beyond it is held to be any object.
        """
        control = self._tokenizer.control
        if control.quote is None or control.call_close is None:
            raise EdgeRuntimeError("this model's tokenizer has no tokens for tool calls")
        quote, close = f"<[{control.quote}]>", f"<[{control.call_close}]>"
        try:
            return self._lark("tools", call_grammar(tools, quote, close))
        except EdgeRuntimeError:
            return self._lark("tools", call_grammar(tools, quote, close, loose=True))

    def _lark(self, what: str, grammar: str) -> Form:
        return self._form(what, self._library.LLMatcher.grammar_from_lark(grammar))

    def _form(self, what: str, grammar: str) -> Form:
        matcher = self._library.LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise EdgeRuntimeError(f"the {what} cannot be held to: {_line(matcher.get_error())}")
        return Form(matcher, self._size)

    @cached_property
    def _library(self) -> Any:
        import llguidance  # noqa: PLC0415 - 8 MB that most requests don't need

        return llguidance

    @cached_property
    def _vocabulary(self) -> Any:
        return self._library.LLTokenizer(_Vocabulary(self._tokenizer, self._ends[0]), self._size, list(self._ends))


class _Vocabulary:
    """Our tokenizer as llguidance wants to see one: reading tokenizer.json a second time would take seconds."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self.eos_token_id = end
        self.tokens = [
            tokenizer.token_bytes(token) or tokenizer.token_text(token).encode() for token in range(tokenizer.size)
        ]
        self.special_token_ids = [token for token in range(tokenizer.size) if tokenizer.is_special(token)]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_plain(text)


def _line(error: str) -> str:
    """The first line of what llguidance says; the others show the grammar."""
    return next((line.strip() for line in error.splitlines() if line.strip()), "it is too complex")[:300]
