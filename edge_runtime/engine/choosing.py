"""Which token of an answer comes next: sampling among what its form, its tools and the budget of thoughts allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_runtime.engine.sampling import Sampler, log_probabilities
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.tools import check_tools

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from edge_runtime.engine.constrain import Form, Forms
    from edge_runtime.engine.protocol import Request, Sampling
    from edge_runtime.gemma.tokenizer import Tokenizer

TOP_K, TOP_P = 64, 0.95
"""What Gemma 4's makers recommend, where the bundle says nothing."""
MOST_LOGPROBS = 20
_HEADER = 2
"""Tokens of a thought's first line, `thought` and its end: no part of the budget."""


class Guide:
    """Follows an answer token by token and says what may come next.

    An answer is a thought, if there is one, then text or tool calls. Thoughts are free up to their budget; text keeps
    to the form; a call keeps to the schemas of the tools.
    """

    def __init__(
        self, tokenizer: Tokenizer, forms: Forms, request: Request, prompt: Sequence[int], ends: Collection[int]
    ) -> None:
        """Prepares for the answer to `prompt`, which ends with a token of `ends`.

        Raises:
            EdgeRuntimeError: A form, choice of tool or budget that is not right.
        """
        self._control, self._forms, self._ends = tokenizer.control, forms, sorted(ends)
        tools = check_tools(request.tools) if request.tools else []
        self._tools, self._must_call = _chosen(tools, request.tool_choice)
        self._form = _form(forms, request)
        if self._form is not None and self._must_call:
            raise EdgeRuntimeError("an answer cannot both keep to a form and be a tool call: see tool_choice")
        if (budget := request.thinking_budget) is not None and (not isinstance(budget, int) or budget < 0):
            raise EdgeRuntimeError(f"thinking_budget is {budget}; it must be 0 or more")
        self._budget, self._may_think = budget, request.think
        self._call: Form | None = forms.call(self._tools) if self._must_call else None
        self._phase: Literal["start", "thought", "text", "call", "called"] = "start"
        self._thought = 0
        marks = [i for i in prompt if i in (self._control.channel_open, self._control.channel_close)]
        if marks and marks[-1] == self._control.channel_open:
            self._phase = "thought"  # the template has opened it already

    @property
    def writes_text(self) -> bool:
        """Whether the last token belongs to the answer's text."""
        return self._phase in {"start", "text"}

    def allowed(self, size: int) -> NDArray[np.bool_] | None:
        """Tokens that may come next, bool `[size]`; None: all."""
        strict = self._form is not None or self._must_call
        if self._phase == "thought":
            if self._budget is not None and self._thought >= self._budget:
                return _only(size, [self._control.channel_close])
            return ~_only(size, self._ends) if strict else None  # a thought alone is no answer
        if self._phase == "call" and self._call is not None:
            return self._call.allowed()
        if self._phase == "called":
            return _only(size, [self._control.call_open, *self._ends]) if strict else None
        if not strict:
            return None
        mask = self._form.allowed() if self._form is not None else np.zeros(size, np.bool_)
        if self._phase == "start":
            if self._may_think:
                mask |= _only(size, [self._control.channel_open])
            if self._tools:
                mask |= _only(size, [self._control.call_open])
        return mask

    def push(self, token: int) -> None:
        """Takes the next token."""
        control = self._control
        if self._phase == "thought":
            self._thought += 1
            if token == control.channel_close:
                self._phase = "start"
        elif self._phase == "call":
            self._push_call(token)
        elif token == control.channel_open:
            self._phase, self._thought, self._may_think = "thought", -_HEADER, False
        elif token == control.call_open:
            self._phase = "call"
            if self._tools and control.quote is not None:
                self._call = self._forms.call(self._tools)
        elif self._phase != "called" and token not in self._ends:
            self._phase = "text"
            if self._form is not None:
                self._form.push(token)

    def _push_call(self, token: int) -> None:
        if self._call is not None:
            self._call.push(token)
        if token == self._control.call_close:
            self._phase, self._call = "called", None


class Chooser:
    """Picks the tokens of one answer.

    Attributes:
        logprobs: One entry for each token of the text so far, as `Piece.logprobs` has them; None: not asked for.
    """

    def __init__(self, sampler: Sampler, guide: Guide, tokenizer: Tokenizer, top: int | None = None) -> None:
        """`top`: how many of the likeliest tokens to name beside each; None: no logarithms at all."""
        self._sampler, self._guide, self._tokenizer, self._top = sampler, guide, tokenizer, top
        self.logprobs: list[dict[str, Any]] | None = None if top is None else []

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token, from float32 `[vocab]`.

        Raises:
            EdgeRuntimeError: The form is too large to be followed.
        """
        token = self._sampler.pick(logits, self._guide.allowed(len(logits)))
        self._sampler.push(token)
        self._guide.push(token)
        if self.logprobs is not None and self._guide.writes_text and not self._tokenizer.is_special(token):
            chosen, best = log_probabilities(logits, token, self._top or 0)
            entry = self._entry(token, chosen)
            self.logprobs.append(entry | {"top_logprobs": [self._entry(*pair) for pair in best]})
        return token

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        text = data.decode("utf-8", "replace") if data else self._tokenizer.token_text(token)
        return {"token": text, "logprob": round(logprob, 6), "bytes": list(data) or None}


def chooser(
    request: Request,
    defaults: Mapping[str, Any],
    *,
    tokenizer: Tokenizer,
    forms: Forms,
    prompt: Sequence[int],
    ends: Collection[int],
) -> Chooser:
    """What chooses the tokens that answer a request.

    Args:
        request: Says how.
        defaults: The bundle's generation_config.json, for what it does not say.
        tokenizer: The bundle's.
        forms: Of the same tokenizer.
        prompt: Token ids of the prompt.
        ends: Tokens that end an answer.

    Raises:
        EdgeRuntimeError: Something that was asked for is not right.
    """
    top = request.top_logprobs if request.logprobs else None
    if top is not None and not 0 <= top <= MOST_LOGPROBS:
        raise EdgeRuntimeError(f"top_logprobs is {top}; it must be from 0 to {MOST_LOGPROBS}")
    sampler = sampler_for(request.sampling, defaults, prompt)
    return Chooser(sampler, Guide(tokenizer, forms, request, prompt, ends), tokenizer, top)


def sampler_for(wanted: Sampling, defaults: Mapping[str, Any], prompt: Iterable[int] = ()) -> Sampler:
    """A sampler as asked for, else as the bundle's generation_config.json says, else as Gemma 4's makers recommend.

    Raises:
        EdgeRuntimeError: A setting outside its range.
    """
    usual = defaults.get("temperature", 1.0) if defaults.get("do_sample") else 0.0

    def given(name: str, otherwise: float) -> float:
        found = getattr(wanted, name)
        return float(defaults.get(name) or otherwise) if found is None else found

    return Sampler(
        float(usual) if wanted.temperature is None else wanted.temperature,
        top_k=int(given("top_k", TOP_K)),
        top_p=given("top_p", TOP_P),
        min_p=given("min_p", 0.0),
        repetition_penalty=given("repetition_penalty", 1.0),
        presence_penalty=wanted.presence_penalty or 0.0,
        frequency_penalty=wanted.frequency_penalty or 0.0,
        logit_bias=wanted.logit_bias,
        seed=wanted.seed,
        prompt=prompt,
    )


def _chosen(tools: list[dict[str, Any]], choice: Any) -> tuple[list[dict[str, Any]], bool]:
    """The tools that may be called, and whether one must be."""
    if choice in ("auto", "none"):
        return (tools if choice == "auto" else []), False
    if choice == "required":
        name = None
    elif isinstance(choice, dict) and isinstance(choice.get("name", choice.get("function")), (str, dict)):
        found = choice.get("name") or choice["function"]
        name = found.get("name") if isinstance(found, dict) else found
    else:
        raise EdgeRuntimeError(f'tool_choice is {choice!r}; it must be auto, none, required or {{"name": ...}}')
    left = [tool for tool in tools if name in (None, tool["function"]["name"])]
    if not left:
        raise EdgeRuntimeError("tool_choice: there are no tools" if name is None else f"tool_choice: no tool {name!r}")
    return left, True


def _form(forms: Forms, request: Request) -> Form | None:
    wanted = {"schema": request.schema, "regex": request.regex, "choice": request.choice}
    given = [name for name, value in wanted.items() if value is not None]
    if len(given) > 1:
        raise EdgeRuntimeError(f"an answer keeps to one form: {' and '.join(given)} were given")
    if request.schema is not None:
        return forms.schema(request.schema)
    if request.regex is not None:
        return forms.regex(request.regex)
    return forms.choice(request.choice) if request.choice is not None else None


def _only(size: int, tokens: Iterable[int | None]) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.bool_)
    mask[[token for token in tokens if token is not None]] = True
    return mask
