"""The names under which code for Hugging Face's transformers knows a model, so that it runs here as it stands.

Example:
    # from transformers import AutoModelForCausalLM, AutoProcessor
    from edge_runtime.hf import AutoModelForCausalLM, AutoProcessor

    processor = AutoProcessor.from_pretrained("bundle")
    model = AutoModelForCausalLM.from_pretrained("bundle", dtype="auto", device_map="auto")
    inputs = processor.apply_chat_template(messages, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    outputs = model.generate(**inputs.to(model.device), max_new_tokens=100)
    print(processor.decode(outputs[0][inputs["input_ids"].shape[-1] :], skip_special_tokens=True))

Tensors are numpy arrays. Arguments that say how transformers is to compute (dtype, device) are taken and ignored.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from edge_runtime.engine.agent import declared
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.output import OutputParser

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.engine import OnnxEngine


class Inputs(dict[str, Any]):
    """What `generate` is given: `input_ids`, int64 `[1, n]`, and the request that they came from."""

    def to(self, *_: Any, **__: Any) -> Self:
        """Itself: there is one device."""
        return self

    @property
    def input_ids(self) -> NDArray[np.int64]:
        """The prompt."""
        found: NDArray[np.int64] = self["input_ids"]
        return found


class Processor:
    """Messages to prompts, token ids to text."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine
        self.tokenizer = engine.tokenizer

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, **_: Any) -> Self:
        """That of a bundle; None for the built-in model.

        Raises:
            EdgeRuntimeError: There is no bundle.
        """
        return cls(_engine(None if name is None else str(name)))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        enable_thinking: bool = False,
        **_: Any,
    ) -> str | NDArray[np.int64] | Inputs:
        """The prompt: text; with `tokenize` or `return_dict`, token ids or what `generate` takes.

        Raises:
            EdgeRuntimeError: Messages, media or tools are not right.
        """
        request = Request(messages=messages, tools=declared(tools) if tools else (), think=enable_thinking)
        if not tokenize and not return_dict:
            return self._engine.prompt_text(request)
        inputs = self._inputs(request)
        return inputs if return_dict else inputs.input_ids

    def __call__(self, text: str, **_: Any) -> Inputs:
        """What `generate` takes, for a prompt that `apply_chat_template` wrote: text only, media come with messages."""
        return self._inputs(Request(raw=text))

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        """Token ids as text."""
        return self.tokenizer.decode([int(token) for token in ids], skip_special=skip_special_tokens)

    def batch_decode(self, rows: Iterable[Iterable[int]], **options: Any) -> list[str]:
        """Each row as text."""
        return [self.decode(row, **options) for row in rows]

    def parse_response(self, response: str | Iterable[int]) -> dict[str, Any]:
        """An answer, with its control tokens, as a message: `role`, `content`, `thinking` and `tool_calls` if any."""
        ids = self.tokenizer.encode(response) if isinstance(response, str) else [int(token) for token in response]
        parser = OutputParser(self.tokenizer)
        content = "".join(parser.push(token) for token in ids).strip()
        parser.finish()
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if parser.thoughts:
            message["thinking"] = parser.thoughts
        if parser.tool_calls:
            message["tool_calls"] = [{"type": "function", "function": call.to_json()} for call in parser.tool_calls]
        return message

    def _inputs(self, request: Request) -> Inputs:
        ids = np.array([self._engine.prepare(request).prompt.ids], np.int64)
        return Inputs(input_ids=ids, attention_mask=np.ones_like(ids), request=request)


class GenerativeModel:
    """Token ids to token ids.

    Attributes:
        device: "cpu", as far as code wants to know.
    """

    device = "cpu"

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, **_: Any) -> Self:
        """A bundle; None for the built-in model.

        Raises:
            EdgeRuntimeError: There is no bundle.
        """
        return cls(_engine(None if name is None else str(name)))

    def eval(self) -> Self:
        """Itself."""
        return self

    def generate(
        self,
        *,
        request: Request | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        streamer: Any = None,
        **_: Any,
    ) -> NDArray[np.int64]:
        """Prompt and answer, int64 `[1, n]`, the token that ended the answer among them.

        Args:
            request: Comes with the inputs.
            max_new_tokens: Tokens of the answer at most.
            do_sample: False: the likeliest tokens.
            temperature: As for `Model.chat`, like those that follow.
            top_p: See there.
            top_k: See there.
            min_p: See there.
            repetition_penalty: See there.
            seed: See there.
            streamer: Has `put(ids)` and `end()` called, as transformers does.

        Raises:
            EdgeRuntimeError: The inputs did not come from `Processor`.
        """
        if request is None:
            raise EdgeRuntimeError("generate takes what the processor gave: model.generate(**inputs)")
        sampling = Sampling(
            0.0 if do_sample is False else temperature,
            top_k,
            top_p,
            seed,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        fields = {name: getattr(request, name) for name in ("messages", "raw", "tools", "think")}
        prepared = self._engine.prepare(Request(**fields, sampling=sampling, max_tokens=max_new_tokens))
        ids = list(prepared.prompt.ids)
        if streamer is not None:
            streamer.put(np.array([ids]))
        for token in self._engine.tokens(prepared):
            if token is None:
                continue
            ids.append(token)
            if streamer is not None:
                streamer.put(np.array([token]))
            prepared.answer.push(token)
            if prepared.answer.done:
                break
        if streamer is not None:
            streamer.end()
        return np.array([ids], np.int64)


AutoProcessor = AutoTokenizer = Processor
AutoModelForCausalLM = AutoModelForImageTextToText = AutoModelForMultimodalLM = GenerativeModel


@functools.cache
def _engine(name: str | None) -> OnnxEngine:
    """One for processor and model."""
    from edge_runtime.engine.loading import load  # noqa: PLC0415 - heavy
    from edge_runtime.engine.onnx.engine import OnnxEngine  # noqa: PLC0415

    engine = load(name).engine
    if not isinstance(engine, OnnxEngine):
        raise EdgeRuntimeError(f"{name}: only bundles are run under these names")
    return engine
