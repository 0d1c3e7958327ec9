"""An engine that answers from a script, and remembers what it was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.engine.protocol import Info, Piece, Timing, Usage

if TYPE_CHECKING:
    from collections.abc import Generator

    from edge_runtime.engine.protocol import Request


class FakeEngine:
    def __init__(self, *answers: str, max_audio_seconds: float = 30.0) -> None:
        self.answers = list(answers) or ["Yes."]
        self.requests: list[Request] = []
        self.closed = False
        self.max_audio_seconds = max_audio_seconds
        self.tool_calls: list[dict[str, object]] = []

    @property
    def info(self) -> Info:
        return Info(name="fake", modalities=["text", "audio"], context=64)

    def run(self, request: Request) -> Generator[Piece, None, None]:
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        return self._pieces(answer)

    def _pieces(self, answer: str) -> Generator[Piece, None, None]:
        yield Piece("")
        for letter in answer:
            yield Piece(letter)
        yield Piece(
            "",
            finish_reason="tool_calls" if self.tool_calls else "stop",
            usage=Usage(prompt_tokens=3, completion_tokens=len(answer)),
            timing=Timing(load_s=0.1, first_token_s=0.2, decode_tokens_per_s=30.0),
            tool_calls=self.tool_calls,
            thoughts="",
        )

    def close(self) -> None:
        self.closed = True
