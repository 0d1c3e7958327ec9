"""Teacher forcing: what a model holds likely about answers that it did not write. For those who measure it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.engine.onnx.prompts import embeddings, table_ids
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.chat import Prompt, check_chat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.decoder import Decoder
    from edge_runtime.engine.onnx.encoders import Encoders
    from edge_runtime.engine.onnx.prepared import Prepared
    from edge_runtime.engine.onnx.prompts import Prompts
    from edge_runtime.engine.protocol import Request
    from edge_runtime.gemma.geometry import Geometry

CHUNK = 64
"""Tokens a step where logits are wanted at each: 64 times 262,144 of them are 67 MB."""


class Forcing:
    """An engine's parts, used to read answers instead of writing them. Not while a request runs."""

    def __init__(
        self, decoder: Decoder, encoders: Encoders, prompts: Prompts, geometry: Geometry, ends: frozenset[int]
    ) -> None:
        """Args: the engine's parts, and the tokens that end a turn."""
        self._decoder, self._encoders, self._prompts = decoder, encoders, prompts
        self._geometry, self._ends = geometry, ends
        self._told: Callable[[dict[str, NDArray[np.float32]]], None] | None = None

    def answer_ids(self, request: Request, answer: Mapping[str, Any]) -> tuple[int, ...]:
        """How the checkpoint's template writes an answer: token ids after the prompt, with the one that ends the turn.

        Args:
            request: What was asked.
            answer: An assistant message with content or tool calls.

        Raises:
            EdgeRuntimeError: The messages are not right, or the answer is empty.
        """
        asked = self._prompts.chat_ids(check_chat(request.messages, request.tools), think=request.think)
        whole = self._prompts.chat_ids(check_chat([*request.messages, answer], request.tools), think=request.think)
        same = next((i for i, pair in enumerate(zip(asked, whole, strict=False)) if pair[0] != pair[1]), len(asked))
        rest = whole[same:]
        end = next((i for i, token in enumerate(rest) if token in self._ends), len(rest))
        if not end:
            raise EdgeRuntimeError("the answer is empty")
        if end < len(rest):
            return tuple(rest[: end + 1])
        # After tool calls the template leaves the turn open; the model ends it by handing over.
        hand_over = self._prompts.tokenizer.control.response_open
        return tuple(rest) if hand_over is None else (*rest, hand_over)

    def soft_tokens(self, prepared: Prepared) -> list[NDArray[np.float32]]:
        """What the towers make of each image and sound of a request: float32 `[span's count, hidden]`."""
        return [self._encoders.encode(item) for item in prepared.ready.media]

    def watch(self, values: Sequence[str], told: Callable[[dict[str, NDArray[np.float32]]], None]) -> None:
        """Has `logits` tell these outputs of the decoder's graph, `[n, width]`, at every step; see `Decoder.watch`."""
        self._decoder.watch(values)
        self._told = told

    def logits(self, prompt: Prompt, soft: Sequence[NDArray[np.float32]], answer: Sequence[int]) -> NDArray[np.float32]:
        """Teacher forcing: what the model holds likely at each token of `answer`, had it written the ones before.

        Args:
            prompt: The question.
            soft: Soft tokens for each of its spans, float32 `[span's count, hidden]`.
            answer: Token ids that follow it, at least one.

        Returns:
            float32 `[len(answer), vocab]`, logits.

        Raises:
            EdgeRuntimeError: Prompt and answer are longer than the context.
        """
        decoder = self._decoder
        count = len(prompt.ids) + len(answer) - 1
        if count > decoder.context:
            raise EdgeRuntimeError(
                f"prompt and answer are {count} tokens, the context is {decoder.context}", "too_large"
            )
        logits = np.empty((len(answer), self._geometry.text.vocab_size), np.float32)
        decoder.begin(prompt.images)
        done = -(len(prompt.ids) - 1)  # the last token of the prompt is the first whose logits count
        whole = Prompt((*prompt.ids, *answer[:-1]), prompt.spans)
        ids, features = table_ids(whole, self._geometry.pad), dict(enumerate(soft))
        most = decoder.most_kept
        for start, end in decoder.cuts(count, min(decoder.chunk, CHUNK, most)):
            size = end - start
            counted = max(0, min(size, done + size))
            # All of them, where values are watched: layers that share their keys see few tokens else.
            step = decoder.step(
                ids[start:end],
                embeddings(decoder, whole, features, ids, start, end),
                keep=min(size, most) if self._told else counted,
            )
            if self._told:
                self._told(decoder.watched)
            done += size
            if counted:
                logits[done - counted : done] = step[-counted:]
        return logits
