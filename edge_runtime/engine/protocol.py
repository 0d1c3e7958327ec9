"""What passes between whoever asks and an engine: requests, pieces of answers, transcripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypedDict

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Mapping, Sequence

FinishReason = Literal["stop", "length", "tool_calls"]

Overflow = Literal["refuse", "drop_oldest_turns"]
"""What happens to a conversation that is longer than the context."""


class Usage(TypedDict):
    """Tokens of a request; soft tokens of media count as prompt tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: NotRequired[int]
    """Prompt tokens that were read before, and not again; engines that cannot tell say nothing."""
    drafted_tokens: NotRequired[int]
    """Where tokens are guessed ahead: those that were guessed."""
    accepted_tokens: NotRequired[int]
    """And those of them that were right."""
    dropped_turns: NotRequired[int]
    """Questions of the conversation that were left out with their answers, if any were."""


class Timing(TypedDict):
    """Where the time went."""

    load_s: float
    first_token_s: float
    decode_tokens_per_s: float


class Info(TypedDict):
    """What a model is: its name, what it takes ("text", "image", "audio") and how many tokens a request may have."""

    name: str
    modalities: list[str]
    context: int


@dataclass(frozen=True)
class Piece:
    """A piece of an answer. `text` may be empty (while a prompt is read, or inside a thought).

    Everything but `text` is set on the last piece only.

    Attributes:
        text: New text, to be appended.
        finish_reason: Why the answer ended: a stop token or string, the token limit, or tools to be called.
        usage: Token counts.
        timing: Seconds and tokens per second.
        tool_calls: `{"name", "arguments"}` each.
        thoughts: What the model thought first, "" if nothing.
        logprobs: For each token of the text, where asked for: `{"token", "logprob", "bytes", "top_logprobs"}`, as
            OpenAI's API has it; natural logarithms of what the model itself holds likely, before temperature.
        tool_call: A call that is complete with this piece; on any piece.
        note: What the asker should know of the answer, such as that another model gave it.
        thought: What `thoughts` gains by this piece; on any piece.
        scored: What `logprobs` gains by this piece; on any piece.
    """

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    tool_calls: list[dict[str, Any]] | None = None
    thoughts: str | None = None
    logprobs: list[dict[str, Any]] | None = None
    tool_call: dict[str, Any] | None = None
    note: str | None = None
    thought: str = ""
    scored: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest. None: the model's own default.

    For what each does see `engine.sampling.Sampler`.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None


@dataclass(frozen=True)
class Request:
    """One question to a model.

    Attributes:
        messages: Hugging Face's chat format, not yet checked. Empty for a plain continuation.
        raw: Text to continue without the chat template; takes the place of `messages`.
        tools: JSON schemas in OpenAI's form.
        think: Ask the model to think first.
        image_tokens: Soft tokens per image at most; None: the model's default.
        video_tokens: Soft tokens per picture of a video at most; None: the model's default.
        max_tokens: Tokens to generate at most; None: the model's default, else as many as fit.
        sampling: How tokens are chosen.
        stop: Strings that end the answer; they are not part of it.
        tool_choice: "auto": call a tool or answer; "none": answer; "required": call; `{"name"}`: call this one.
        thinking_budget: Tokens of thought at most; then the thought is closed and the answer begins. None: no limit.
        schema: JSON schema that the answer keeps to. At most one of this and the next two.
        regex: Regular expression that the whole answer matches.
        choice: Strings of which the answer is one.
        logprobs: Whether to give logarithms of probabilities.
        top_logprobs: How many of the likeliest tokens to name beside each, with `logprobs`.
        speculative: Whether to guess tokens ahead and check several in one step; the answer stays the same. None: where
            the model has a drafter.
        overflow: Where messages are longer than the context: "refuse" them, or "drop_oldest_turns", which leaves out
            whole questions with their answers, the oldest first, but never the system turn or the last question.
        large: Whether the larger of two models is wanted, where there are two.
        cancel: When set, the answer ends with the error `cancelled` before the next token or chunk.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    raw: str | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    think: bool = False
    image_tokens: int | None = None
    video_tokens: int | None = None
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    thinking_budget: int | None = None
    schema: Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    speculative: bool | None = None
    overflow: Overflow = "refuse"
    large: bool = False
    cancel: threading.Event | None = None


@dataclass(frozen=True)
class Transcript:
    """What was said.

    Attributes:
        text: The whole, or its translation if one was asked for.
        segments: `{"start", "end", "text"}` each, in seconds, in order.
        original: The words as spoken where `text` is a translation, else "".
    """

    text: str
    segments: list[dict[str, Any]]
    original: str = ""


class Engine(Protocol):
    """Something that answers. One request at a time."""

    @property
    def info(self) -> Info:
        """What the model is."""

    @property
    def max_audio_seconds(self) -> float:
        """The longest sound in one question, 0 if the model takes none."""

    def run(self, request: Request) -> Generator[Piece, None, None]:
        """Answers; the last piece carries `finish_reason`. Closing the generator stops the work.

        Raises:
            EdgeRuntimeError: A request that cannot be answered, before anything is computed; or `cancelled`.
        """

    def close(self) -> None:
        """Frees what the engine holds; a second call does nothing."""
