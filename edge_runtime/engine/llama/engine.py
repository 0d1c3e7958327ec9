"""Answers requests through a llama.cpp server: the same protocol as the ONNX engine, the same shape of answers."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from edge_runtime.engine.llama import chat as words
from edge_runtime.engine.llama.client import ServerLost, ask, stream
from edge_runtime.engine.onnx.prompts import without_oldest_turn
from edge_runtime.engine.protocol import Info, Piece, Timing, Usage
from edge_runtime.engine.stops import StopStrings
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Generator

    from edge_runtime.engine.llama.server import Address
    from edge_runtime.engine.plan import MemoryPlan
    from edge_runtime.engine.protocol import FinishReason, Request

log = logging.getLogger(__name__)

RENDERED = "/completion"
"""Where a prompt goes that has been rendered already. llama.cpp's chat endpoint holds Gemma's answers to a schema in a
fence that its grammar forgets where there are no thoughts, and then cannot read them."""
MOST_LOGPROBS = 20
TRIES = 2
"""A request during which the server dies is asked once more."""


class Backend(Protocol):
    """Where requests go: a server of ours, or one elsewhere."""

    def address(self, cancel: threading.Event | None = None) -> Address:
        """Where the server listens now; waits while it starts."""

    def broken(self, address: Address, why: str) -> None:
        """Hears that a request met no answer there."""

    def worked(self) -> None:
        """Hears that a request was answered."""

    def close(self) -> None:
        """Ends it, if it is ours."""


class LlamaEngine:
    """A model behind a llama.cpp server. One request at a time; another one meanwhile is refused as `busy`."""

    def __init__(
        self,
        backend: Backend,
        info: Info,
        abilities: words.Abilities,
        *,
        control_tokens: tuple[str, ...] = (),
        defaults: dict[str, float] | None = None,
        template: bool = True,
        memory: MemoryPlan | None = None,
        load_s: float = 0.0,
    ) -> None:
        """Takes a server that runs.

        Args:
            backend: The server.
            info: What the model is.
            abilities: What it takes.
            control_tokens: See `chat.Plain`.
            defaults: Sampling where a request says nothing: `temperature`, `top_k`, `top_p`.
            template: Whether the model knows turns; one that does not continues what it is asked.
            memory: What it takes of this box.
            load_s: Seconds that loading took.
        """
        self.memory = memory
        self._backend, self._info, self._abilities, self._template = backend, info, abilities, template
        self._plain = words.Plain(control_tokens)
        self._defaults = {"temperature": words.TEMPERATURE, "top_k": words.TOP_K, "top_p": words.TOP_P}
        self._defaults |= defaults or {}
        self._lock = threading.Lock()
        self._closed = False
        self._load_s = load_s

    @property
    def backend(self) -> Backend:
        """The server that answers."""
        return self._backend

    @property
    def info(self) -> Info:
        """Name, modalities and context of the model."""
        return self._info

    @property
    def max_audio_seconds(self) -> float:
        """The longest sound in one question, 0 if the model takes none."""
        return self._abilities.audio_s

    def run(self, request: Request) -> Generator[Piece, None, None]:
        """See `Engine.run`. What can be checked here is checked at once, not when the first piece is asked for."""
        path, body = self._body(request)
        return self._pieces(request, path, body)

    def close(self) -> None:
        """Ends the server; a second call does nothing."""
        self._closed = True
        self._backend.close()

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        if request.max_tokens is not None and request.max_tokens < 1:
            raise EdgeRuntimeError(f"max_tokens is {request.max_tokens}; it must be 1 or more")
        StopStrings(request.stop)
        if request.regex is not None:
            raise EdgeRuntimeError("llama.cpp holds an answer to a schema or a choice, not to a regular expression")
        if not 0 <= request.top_logprobs <= MOST_LOGPROBS:
            raise EdgeRuntimeError(f"top_logprobs is {request.top_logprobs}; it must be from 0 to {MOST_LOGPROBS}")
        body: dict[str, Any] = {
            "stream": True,
            "stream_options": {"include_usage": True},
            "timings_per_token": True,
            "return_progress": True,
            "cache_prompt": True,
            **words.sampling_body(request.sampling, self._defaults),
        }
        if request.logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        if request.raw is not None:
            return "/v1/completions", body | {"prompt": request.raw}
        if not self._template:
            return "/v1/completions", body | {"prompt": self._plain(words.last_words(request))}
        body |= words.chat_body(request, self._abilities, self._plain, self._info["context"])
        body["chat_template_kwargs"] = {"enable_thinking": request.think}
        if request.schema is not None and not request.think and not request.tools:
            return RENDERED, body
        return "/v1/chat/completions", body

    def _pieces(self, request: Request, path: str, body: dict[str, Any]) -> Generator[Piece, None, None]:
        if not self._lock.acquire(blocking=False):
            raise EdgeRuntimeError("the model is answering another request", "busy")
        dropped = 0
        try:
            while True:
                try:
                    yield from self._tries(request, path, body, dropped)
                except EdgeRuntimeError as error:
                    rest = without_oldest_turn(request.messages) if request.overflow != "refuse" else None
                    if error.code != "too_large" or rest is None:
                        raise
                    request, dropped = replace(request, messages=rest), dropped + 1
                    path, body = self._body(request)
                else:
                    return
        finally:
            self._lock.release()

    def _tries(self, request: Request, path: str, body: dict[str, Any], dropped: int) -> Generator[Piece, None, None]:
        """Asks, and asks again if the server is lost."""
        given = ""
        for left in reversed(range(TRIES)):
            if self._closed:
                raise EdgeRuntimeError("the model is closed")
            address = self._backend.address(request.cancel)
            reading = Reading(request, given, self._load_s, dropped)
            try:
                if path == RENDERED:
                    body = _rendered(address, body)
                with contextlib.closing(stream(address, path, body, cancel=request.cancel)) as events:
                    for event in events:
                        piece = reading.push(event)
                        given += piece.text
                        yield piece
                        if reading.done:
                            break
                self._backend.worked()
                yield reading.finish()
            except ServerLost as lost:
                self._backend.broken(address, str(lost))
                if not left:
                    raise EdgeRuntimeError(f"llama.cpp's server {lost}, twice at this request", "internal") from None
                log.warning("llama.cpp's server %s: the request is asked once more", lost)
            else:
                return


class Reading:
    """Makes pieces of one stream's events.

    Attributes:
        done: Whether a stop string has ended the answer, whatever the server goes on to say.
    """

    def __init__(self, request: Request, given: str = "", load_s: float = 0.0, dropped: int = 0) -> None:
        """Prepares.

        Args:
            request: What was asked.
            given: Text that an earlier try has given out; the same text now is not given out again.
            load_s: For the timing.
            dropped: Questions of the conversation that were left out.
        """
        self._dropped = dropped
        self._stops = StopStrings(request.stop)
        self._again, self._load_s = given, load_s
        self._thoughts: list[str] = []
        self._calls: dict[int, list[str]] = {}
        self._logprobs: list[dict[str, Any]] = []
        self._asked = request.logprobs
        self._reason: FinishReason = "stop"
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._first: float | None = None
        self.done = False

    def push(self, event: dict[str, Any]) -> Piece:
        """Takes an event; returns what may be shown now."""
        self._usage = event.get("usage") or self._usage
        self._timings = event.get("timings") or self._timings
        text = thoughts = ""
        scored = len(self._logprobs)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            text += choice.get("text") or delta.get("content") or ""
            thought = delta.get("reasoning_content") or ""
            self._thoughts.append(thought)
            thoughts += thought
            for call in delta.get("tool_calls") or ():
                self._call(call)
            if (text or thought or self._calls) and self._first is None:
                self._first = time.perf_counter()
            self._logprobs += [_logprob(entry) for entry in (choice.get("logprobs") or {}).get("content") or ()]
            if (reason := choice.get("finish_reason")) in {"stop", "length", "tool_calls"}:
                self._reason = reason
        if "stop" in event:  # llama.cpp's own dialect
            text += event.get("content") or ""
            self._first = self._first or (time.perf_counter() if text else None)
            if event["stop"]:
                self._reason = "length" if event.get("stop_type") == "limit" else "stop"
        shown = self._stops.push(text)
        self.done = self._stops.stopped
        return Piece(self._fresh(shown), thought=thoughts, scored=self._logprobs[scored:] or None)

    def finish(self) -> Piece:
        """The last piece."""
        tail = self._fresh(self._stops.finish())
        calls = [{"name": name, "arguments": _arguments(text)} for name, text in self._calls.values()]
        if calls and self._reason == "stop":
            self._reason = "tool_calls"
        if self.done:
            self._reason = "stop"
        timings, usage, now = self._timings, self._usage, time.perf_counter()
        prompt = int(timings.get("prompt_n", 0)) + max(0, int(timings.get("cache_n", 0)))
        count = int(usage.get("completion_tokens", timings.get("predicted_n", 0)))
        first = self._first if self._first is not None else now
        speed = timings.get("predicted_per_second") or (count - 1) / max(1e-9, now - first)
        counts = Usage(prompt_tokens=int(usage.get("prompt_tokens", prompt)), completion_tokens=count)
        if "cache_n" in timings:
            counts["cached_tokens"] = max(0, int(timings["cache_n"]))
        if "draft_n" in timings:
            counts["drafted_tokens"] = int(timings["draft_n"])
            counts["accepted_tokens"] = int(timings["draft_n_accepted"])
        if self._dropped:
            counts["dropped_turns"] = self._dropped
        return Piece(
            tail,
            finish_reason=self._reason,
            usage=counts,
            timing=Timing(
                load_s=round(self._load_s, 3),
                first_token_s=round(first - self._started, 3),
                decode_tokens_per_s=round(speed, 2) if count > 1 else 0.0,
            ),
            tool_calls=calls,
            thoughts="".join(self._thoughts).strip(),
            logprobs=self._logprobs if self._asked else None,
        )

    def _call(self, delta: dict[str, Any]) -> None:
        function = delta.get("function") or {}
        call = self._calls.setdefault(int(delta.get("index", len(self._calls))), ["", ""])
        call[0] += function.get("name") or ""
        call[1] += function.get("arguments") or ""

    def _fresh(self, text: str) -> str:
        """`text` without what was given out before.

        Raises:
            EdgeRuntimeError: The answer has become another one.
        """
        if not self._again:
            return text
        old = self._again[: len(text)]
        if text[: len(old)] != old:
            raise EdgeRuntimeError(
                "llama.cpp's server ended in the middle of an answer and then began another", "internal"
            )
        self._again = self._again[len(old) :]
        return text[len(old) :]


def _rendered(address: Address, body: dict[str, Any]) -> dict[str, Any]:
    """A chat body as the prompt that it makes, with the schema that the answer keeps to."""
    if "messages" not in body:
        return body  # at the second try
    prompt, media = ask(address, "/apply-template", body)["prompt"], words.media_of(body)
    rest = {key: value for key, value in body.items() if key not in {"messages", "response_format", "stream_options"}}
    schema = body["response_format"]["json_schema"]["schema"]
    whole = {"prompt_string": prompt, "multimodal_data": media} if media else prompt
    return rest | {"prompt": whole, "json_schema": schema}


def _logprob(entry: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp's entry without its token ids."""
    plain = {key: entry[key] for key in ("token", "logprob", "bytes") if key in entry}
    likeliest = [{key: other[key] for key in plain if key in other} for other in entry.get("top_logprobs") or ()]
    return plain | {"top_logprobs": likeliest}


def _arguments(text: str) -> dict[str, Any]:
    """A call's arguments; {} where a limit has cut them off."""
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}
