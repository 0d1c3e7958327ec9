"""One prompt through the engine, token by token, as the parity and golden tests want it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.engine.protocol import Request, Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.engine import OnnxEngine
    from edge_runtime.engine.onnx.prepared import Prepared
    from tests.engine.prompts import Case

MAX_TOKENS = 64


def request(case: Case, max_tokens: int = MAX_TOKENS) -> Request:
    """The greedy request that asks a case."""
    return Request(
        messages=case.messages,
        tools=case.tools,
        think=case.think,
        max_tokens=max_tokens,
        sampling=Sampling(temperature=0.0),
    )


def first_logits(engine: OnnxEngine, prepared: Prepared) -> NDArray[np.float32]:
    """Logits after the prompt, `[vocab]`."""
    steps = engine.prefill(prepared)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return np.array(end.value[-1])


def greedy(engine: OnnxEngine, prepared: Prepared) -> list[int]:
    """Ids of the answer, with the one that ended it."""
    ids = []
    for token in engine.tokens(prepared):
        if token is not None:
            ids.append(token)
            prepared.answer.push(token)
            if prepared.answer.done:
                break
    return ids
