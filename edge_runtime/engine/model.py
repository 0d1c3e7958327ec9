"""`Model`: what Python programs use, and what the command line and the daemon are made of. `loading.load` gives one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

from edge_runtime import media
from edge_runtime.engine import speech
from edge_runtime.engine.agent import MAX_STEPS, ToolRun, declared
from edge_runtime.engine.listening import Listening
from edge_runtime.engine.protocol import Request, Sampling, Transcript
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.engine.agent import ToolRequest
    from edge_runtime.engine.plan import MemoryPlan
    from edge_runtime.engine.protocol import Engine, Info, Overflow, Piece
    from edge_runtime.media import AudioSource


class Model:
    """A loaded model. Use it as a context manager, or call `close` when done.

    Example:
        with edge_runtime.load() as model:
            print("".join(piece.text for piece in model.chat([{"role": "user", "content": "Hello"}])))
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def info(self) -> Info:
        """`{"name", "modalities", "context"}`."""
        return self._engine.info

    @property
    def engine(self) -> Engine:
        """What answers."""
        return self._engine

    @property
    def memory(self) -> MemoryPlan | None:
        """What it takes, worked out before it was loaded; None where the engine does not know."""
        return getattr(self._engine, "memory", None)

    @contextlib.contextmanager
    def listen(
        self,
        prompt: str = "",
        *,
        messages: Sequence[Mapping[str, Any]] = (),
        system: str | None = None,
        cancel: threading.Event | None = None,
        **options: Any,
    ) -> Iterator[Listening]:
        """Takes in a question while it is being spoken, so that the answer comes sooner after its end.

        Example:
            with model.listen(system="Answer briefly.") as listening:
                for samples in microphone:
                    listening.feed(samples)
                for piece in listening.finish():
                    print(piece.text, end="")

        Args:
            prompt: Words that go with the sound, after it.
            messages: The conversation before.
            system: System prompt, where `messages` has none.
            cancel: Set it from another thread to stop the answer.
            options: As for `chat`.

        Raises:
            EdgeRuntimeError: The model takes no audio.
        """
        if not self._engine.max_audio_seconds:
            raise EdgeRuntimeError("this model takes no audio", "unsupported_media")
        before = [{"role": "system", "content": system}, *messages] if system else list(messages)
        yield Listening(self, self._engine, before, prompt, {**options, "cancel": cancel})

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        tool_choice: str | Mapping[str, Any] = "auto",
        schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        choice: Sequence[str] | None = None,
        think: bool = False,
        thinking_budget: int | None = None,
        image_tokens: int | None = None,
        video_tokens: int | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        speculative: bool | None = None,
        overflow: Overflow = "refuse",
        large: bool = False,
        cancel: threading.Event | None = None,
    ) -> Generator[Piece, None, None]:
        """Answers a conversation, piece by piece.

        Args:
            messages: Hugging Face's chat format; content items, in any order, are `{"type": "text", "text"}`,
                `{"type": "image", "image": path | bytes | PIL image}`,
                `{"type": "audio", "audio": path | bytes | float32 samples at 16 kHz}` and
                `{"type": "video", "video": path | bytes}`, of which a frame a second is looked at.
            max_tokens: Tokens to generate at most.
            temperature: 0 for the likeliest answer; None for the model's own default, as with the next four.
            top_p: Probability mass to sample from.
            top_k: Tokens to sample from.
            min_p: Share of the likeliest token's probability that others must have.
            repetition_penalty: Above 1 for fewer repetitions of anything, the prompt's words too.
            presence_penalty: Above 0 for fewer repetitions of the answer's own words.
            frequency_penalty: The same, more for each time.
            logit_bias: -100 (never) to 100 by token id.
            seed: For answers that can be repeated.
            stop: Strings that end the answer.
            tools: Functions with type hints and a docstring, or
                `{"type": "function", "function": {"name", "description", "parameters"}}` each. `run_tools` calls them.
            tool_choice: "auto", "none", "required" or `{"name": tool}`.
            schema: JSON schema that the answer keeps to.
            regex: Regular expression that the whole answer matches.
            choice: Strings of which the answer is one.
            think: Let the model think first. Thoughts are given apart and keep to no form.
            thinking_budget: Tokens of thought at most.
            image_tokens: Soft tokens per image: 70, 140, 280, 560 or 1120.
            video_tokens: The same per picture of a video.
            logprobs: Give the logarithms of the probabilities of the answer's tokens.
            top_logprobs: And those of so many of the likeliest tokens beside each.
            speculative: Guess tokens ahead and check several at once: the same answer, sooner where a drafter guesses
                well or text repeats what was said. None: if the bundle has a drafter.
            overflow: What happens if the conversation is longer than the context: see `Request`.
            large: Ask the larger of two models, where there are two.
            cancel: Set it from another thread to stop.

        Returns:
            Pieces; the last one has `finish_reason`, `usage`, `timing`, `tool_calls`, `thoughts` and `logprobs`.

        Raises:
            EdgeRuntimeError: At once for a request that cannot be answered; while iterating, when cancelled.
        """
        return self._engine.run(
            Request(
                messages=messages,
                tools=declared(tools) if tools and tool_choice != "none" else (),
                tool_choice=tool_choice,
                think=think,
                thinking_budget=thinking_budget,
                image_tokens=image_tokens,
                video_tokens=video_tokens,
                max_tokens=max_tokens,
                sampling=Sampling(
                    temperature,
                    top_k,
                    top_p,
                    seed,
                    min_p=min_p,
                    repetition_penalty=repetition_penalty,
                    presence_penalty=presence_penalty,
                    frequency_penalty=frequency_penalty,
                    logit_bias=logit_bias,
                ),
                stop=[stop] if isinstance(stop, str) else stop or (),
                schema=schema,
                regex=regex,
                choice=choice,
                logprobs=logprobs,
                top_logprobs=top_logprobs,
                speculative=speculative,
                overflow=overflow,
                large=large,
                cancel=cancel,
            )
        )

    def run_tools(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]],
        *,
        execute: Callable[[str, dict[str, Any]], Any] | None = None,
        approve: Callable[[ToolRequest], bool] | None = None,
        on_result: Callable[[ToolRequest, Any], None] | None = None,
        max_steps: int = MAX_STEPS,
        **options: Any,
    ) -> ToolRun:
        """Answers a conversation, calling tools until the model has its answer.

        Args:
            messages: As for `chat`.
            tools: Functions; or JSON objects as for `chat`, for which `execute` makes the call.
            execute: Is told name and arguments of a call, returns its result.
            approve: Is asked before each call; False: the model is told that the user does not allow it.
            on_result: Is told each result.
            max_steps: Answers of the model at most; when the last of them still has calls, these are made and the run
                ends without an answer.
            options: As for `chat`.

        Returns:
            What to iterate over, for pieces; it keeps the conversation in `messages`. What a tool raises is told to the
            model.

        Raises:
            EdgeRuntimeError: As `chat`; a tool that cannot be described, or called.
        """
        return ToolRun(
            self.chat,
            messages,
            tools,
            execute=execute,
            approve=approve,
            on_result=on_result,
            max_steps=max_steps,
            **options,
        )

    def complete(
        self,
        text: str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        choice: Sequence[str] | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        cancel: threading.Event | None = None,
    ) -> Generator[Piece, None, None]:
        """Continues `text` as it stands, without the chat template; the rest as in `chat`."""
        return self._engine.run(
            Request(
                raw=text,
                max_tokens=max_tokens,
                sampling=Sampling(
                    temperature,
                    top_k,
                    top_p,
                    seed,
                    min_p=min_p,
                    repetition_penalty=repetition_penalty,
                    presence_penalty=presence_penalty,
                    frequency_penalty=frequency_penalty,
                    logit_bias=logit_bias,
                ),
                stop=[stop] if isinstance(stop, str) else stop or (),
                schema=schema,
                regex=regex,
                choice=choice,
                logprobs=logprobs,
                top_logprobs=top_logprobs,
                cancel=cancel,
            )
        )

    def transcribe(
        self,
        source: AudioSource,
        language: str = "English",
        *,
        translate_to: str | None = None,
        hint: str | None = None,
        temperature: float = 0.0,
        on_text: Callable[[str], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Transcript:
        """Speech to text, of any length: a recording is cut at its pauses, and only where somebody speaks is it heard.

        Args:
            source: A WAV, FLAC, OGG or MP3 file, its bytes, or float32 mono samples at 16 kHz.
            language: What is spoken, by its English name.
            translate_to: Give a translation into this language as the text.
            hint: What the recording is about, or names that occur in it.
            temperature: Speech has one right transcript: by default the likeliest.
            on_text: Is told the text piece by piece while it is written; all pieces together are the text.
            cancel: Set it from another thread to stop.

        Raises:
            EdgeRuntimeError: The model takes no audio, the source cannot be read, or `cancelled`.
        """
        limit = self._engine.max_audio_seconds
        if not limit:
            raise EdgeRuntimeError("this model takes no audio", "unsupported_media")
        samples = media.load_audio(source)
        prompt = speech.transcribe_prompt(language, translate_to, hint)
        rate = media.SAMPLE_RATE
        segments: list[dict[str, Any]] = []
        originals: list[str] = []
        last = ""
        for part in speech.parts(samples, limit):
            tell = speech.Teller(on_text, " " if segments else "")
            streams = translate_to is None and not part.overlaps
            piece = samples[part.start : part.end]
            text = self._ask_about(piece, prompt, temperature, tell if streams else None, cancel)
            if translate_to is not None:
                original, text = speech.split_translation(text, translate_to)
                originals.append(original)
            elif part.overlaps:
                text = speech.without_seam(last, text)
            tell(text)
            last = text
            if text:
                segments.append({"start": round(part.start / rate, 2), "end": round(part.end / rate, 2), "text": text})
        return Transcript(" ".join(segment["text"] for segment in segments), segments, " ".join(originals).strip())

    def close(self) -> None:
        """Frees the model."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask_about(
        self,
        samples: NDArray[np.float32],
        prompt: str,
        temperature: float,
        tell: Callable[[str], None] | None,
        cancel: threading.Event | None,
    ) -> str:
        content = [{"type": "audio", "audio": samples}, {"type": "text", "text": prompt}]
        text = ""
        most = speech.most_tokens(len(samples) / media.SAMPLE_RATE)
        pieces = self.chat(
            [{"role": "user", "content": content}], temperature=temperature, max_tokens=most, cancel=cancel
        )
        for piece in pieces:
            text += piece.text
            if tell is not None:
                tell(text)
        return text.strip()
