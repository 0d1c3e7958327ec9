"""Answers requests with a bundle: prompt, soft tokens, prefill in chunks, decode token by token."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.bundle.checksums import Checksums
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.answer import Answer
from edge_runtime.engine.onnx.decoder import Decoder
from edge_runtime.engine.onnx.encoders import Encoders
from edge_runtime.engine.onnx.session import default_threads
from edge_runtime.engine.protocol import Info, Piece, Timing, Usage
from edge_runtime.engine.sampling import Sampler
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.chat import ChatTemplate, Prompt, check_chat, expand
from edge_runtime.gemma.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.encoders import Clip, Picture
    from edge_runtime.engine.protocol import Request, Sampling
    from edge_runtime.gemma.chat import Chat

CONTEXT = 4096

FORCED_CHUNK = 64
"""Tokens a step where logits are wanted at each: 64 times 262,144 of them are 67 MB."""

# What Gemma 4's makers recommend, where the bundle says nothing.
TOP_K, TOP_P = 64, 0.95


@dataclass(frozen=True)
class Prepared:
    """A request that was checked and can run.

    Attributes:
        prompt: Token ids, with a span for each of `media`.
        media: Images and sounds, ready for their towers.
        sampler: Chooses tokens.
        answer: Collects them.
        cancel: Ends the work when set.
    """

    prompt: Prompt
    media: tuple[Clip | Picture, ...]
    sampler: Sampler
    answer: Answer
    cancel: threading.Event | None


class OnnxEngine:
    """A bundle, loaded. One request at a time; another one meanwhile is refused as `busy`."""

    def __init__(
        self, folder: Path, *, context: int | None = None, threads: int | None = None, name: str | None = None
    ) -> None:
        """Loads a bundle; the towers are opened when first needed.

        Args:
            folder: The bundle.
            context: Tokens that prompt and answer may have together; None: `CONTEXT`, or the model's limit if less.
            threads: To compute with; None: the cores there are, four at most.
            name: What the model is called; None: as in the bundle.

        Raises:
            EdgeRuntimeError: No bundle, a damaged one, or a context that the model does not have.
        """
        started = time.perf_counter()
        manifest = read_manifest(folder)
        limit = manifest.geometry.text.max_positions
        context = min(CONTEXT, limit) if context is None else context
        if not 1 < context <= limit:
            raise EdgeRuntimeError(f"context is {context}; this model takes 2 to {limit} tokens")
        if threads is not None and threads < 1:
            raise EdgeRuntimeError(f"threads is {threads}; it must be 1 or more")
        threads = threads or default_threads()
        self._name, self._geometry = name or manifest.name, manifest.geometry
        checksums = Checksums.open(folder, manifest.files)
        checksums.check(*(file for file in names.COPIED if file in manifest.files))
        self._generation = _generation_config(folder)
        self.tokenizer = Tokenizer.from_folder(folder)
        self._template = ChatTemplate(_text_file(folder / names.CHAT_TEMPLATE), self.tokenizer)
        self._encoders = Encoders(folder, manifest, threads, checksums)
        self._decoder = Decoder(folder, manifest, context=context, threads=threads, checksums=checksums)
        self._ends = self._end_tokens()
        self._lock = threading.Lock()
        self._closed = False
        self._load_s = time.perf_counter() - started

    @property
    def info(self) -> Info:
        """Name, modalities and context of the model."""
        return Info(name=self._name, modalities=self._encoders.modalities, context=self._decoder.context)

    @property
    def max_audio_seconds(self) -> float:
        """The longest sound in one question, 0 if the model takes none."""
        return self._encoders.max_audio_seconds

    def run(self, request: Request) -> Generator[Piece, None, None]:
        """See `Engine.run`. The request is checked at once, not when the first piece is asked for."""
        return self._pieces(self.prepare(request))

    def prepare(self, request: Request) -> Prepared:
        """Checks a request, reads its media, makes its prompt. Computes nothing.

        Raises:
            EdgeRuntimeError: One clear line on what is wrong with it.
        """
        media: tuple[Clip | Picture, ...] = ()
        if request.raw is not None:
            ids = self.tokenizer.encode(request.raw)
            prompt = Prompt(tuple(ids if ids[:1] == [self._geometry.bos] else [self._geometry.bos, *ids]))
        else:
            chat = check_chat(request.messages, request.tools)
            media = tuple(self._encoders.prepare(item, request.image_tokens) for item in chat.media)
            ids = self._chat_ids(chat, request.think)
            counts = [(item.kind, ready.soft_tokens) for item, ready in zip(chat.media, media, strict=True)]
            prompt = expand(ids, self.tokenizer, counts)
        room = self._decoder.context - len(prompt.ids)
        if room < 1:
            raise EdgeRuntimeError(
                f"prompt is {len(prompt.ids)} tokens, the context is {self._decoder.context}: shorten the prompt or "
                "load the model with a larger context",
                "too_large",
            )
        wanted = request.max_tokens if request.max_tokens is not None else self._generation.get("max_new_tokens", room)
        if wanted < 1:
            raise EdgeRuntimeError(f"max_tokens is {wanted}; it must be 1 or more")
        answer = Answer(
            self.tokenizer, prompt.ids, ends=self._ends, stop=request.stop, max_tokens=min(int(wanted), room)
        )
        return Prepared(prompt, media, self._sampler(request.sampling), answer, request.cancel)

    def tokens(self, prepared: Prepared) -> Generator[int | None, None, None]:
        """Token ids of the answer, without end; None after each part of the prompt.

        Raises:
            EdgeRuntimeError: `cancelled`, before the next token or chunk.
        """
        logits = yield from self.prefill(prepared)
        while True:
            token = prepared.sampler.pick(logits[-1])
            yield token
            self._check(prepared)
            ids = np.array([token], np.int64)
            logits = self._decoder.step(ids, self._decoder.embed(ids))

    def prefill(self, prepared: Prepared) -> Generator[None, None, NDArray[np.float32]]:
        """Reads the prompt chunk by chunk; returns the logits after its last token, float32 `[1, vocab]`."""
        features = []
        for item in prepared.media:
            self._check(prepared)
            features.append(self._encoders.encode(item))
            yield
        self._decoder.begin(prepared.prompt.images)
        logits: NDArray[np.float32] | None = None
        for part, embeddings in self._parts(prepared.prompt, features, self._decoder.chunk):
            self._check(prepared)
            logits = self._decoder.step(part, embeddings)
            yield
        if logits is None:
            raise EdgeRuntimeError("the prompt is empty")
        return logits

    def answer_ids(self, request: Request, answer: Mapping[str, Any]) -> tuple[int, ...]:
        """How the checkpoint's template writes an answer: token ids after the prompt, with the one that ends the turn.

        Args:
            request: What was asked.
            answer: An assistant message with content or tool calls.

        Raises:
            EdgeRuntimeError: The messages are not right, or the answer is empty.
        """
        asked = self._chat_ids(check_chat(request.messages, request.tools), request.think)
        whole = self._chat_ids(check_chat([*request.messages, answer], request.tools), request.think)
        same = next((i for i, pair in enumerate(zip(asked, whole, strict=False)) if pair[0] != pair[1]), len(asked))
        rest = whole[same:]
        end = next((i for i, token in enumerate(rest) if token in self._ends), len(rest))
        if not end:
            raise EdgeRuntimeError("the answer is empty")
        if end < len(rest):
            return tuple(rest[: end + 1])
        # After tool calls the template leaves the turn open; the model ends it by handing over.
        hand_over = self.tokenizer.control.response_open
        return tuple(rest) if hand_over is None else (*rest, hand_over)

    def soft_tokens(self, prepared: Prepared) -> list[NDArray[np.float32]]:
        """What the towers make of each image and sound of a request: float32 `[span's count, hidden]`."""
        return [self._encoders.encode(item) for item in prepared.media]

    def forced(self, prompt: Prompt, soft: Sequence[NDArray[np.float32]], answer: Sequence[int]) -> NDArray[np.float32]:
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
        for part, embeddings in self._parts(whole, soft, min(decoder.chunk, FORCED_CHUNK)):
            counted = max(0, min(len(part), done + len(part)))
            step = decoder.step(part, embeddings, keep=max(1, counted))
            done += len(part)
            if counted:
                logits[done - counted : done] = step
        return logits

    def _parts(
        self, prompt: Prompt, features: Sequence[NDArray[np.float32]], size: int
    ) -> Generator[tuple[NDArray[np.int64], NDArray[np.float32]], None, None]:
        """`size` tokens at a time: ids, pad for soft tokens, and embeddings with `features` in their place."""
        ids = np.array(prompt.ids, np.int64)
        for span in prompt.spans:
            ids[span.start : span.start + span.count] = self._geometry.pad
        self._decoder.prefetch(ids)
        for start, end in self._decoder.cuts(len(ids), size):
            part = ids[start:end]
            embeddings = self._decoder.embed(part)
            for span, soft in zip(prompt.spans, features, strict=True):
                first, last = max(span.start, start), min(span.start + span.count, start + len(part))
                if first < last:
                    embeddings[first - start : last - start] = soft[first - span.start : last - span.start]
            yield part, embeddings

    def close(self) -> None:
        """Closes files and sessions; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._decoder.close()
            self._encoders.close()

    def _pieces(self, prepared: Prepared) -> Generator[Piece, None, None]:
        if not self._lock.acquire(blocking=False):
            raise EdgeRuntimeError("the model is answering another request", "busy")
        try:
            if self._closed:
                raise EdgeRuntimeError("the model is closed")
            yield from self._answer(prepared)
        finally:
            self._lock.release()

    def _answer(self, prepared: Prepared) -> Generator[Piece, None, None]:
        answer = prepared.answer
        started = first = time.perf_counter()
        text = ""
        for token in self.tokens(prepared):
            if token is None:
                yield Piece("")
                continue
            if not answer.tokens:
                first = time.perf_counter()
            text = answer.push(token)
            if answer.done:
                break
            yield Piece(text)
        ended = time.perf_counter()
        tail, reason = answer.finish()
        yield Piece(
            text + tail,
            finish_reason=reason,
            usage=Usage(prompt_tokens=len(prepared.prompt.ids), completion_tokens=answer.tokens),
            timing=Timing(
                load_s=round(self._load_s, 3),
                first_token_s=round(first - started, 3),
                decode_tokens_per_s=round((answer.tokens - 1) / (ended - first), 1) if answer.tokens > 1 else 0.0,
            ),
            tool_calls=[call.to_json() for call in answer.parser.tool_calls],
            thoughts=answer.parser.thoughts,
        )

    def _chat_ids(self, chat: Chat, think: bool) -> list[int]:
        """Token ids of a conversation, a placeholder for each image and sound."""
        return self.tokenizer.encode_marked(self._template.render(chat, think=think))

    @staticmethod
    def _check(prepared: Prepared) -> None:
        if prepared.cancel is not None and prepared.cancel.is_set():
            raise EdgeRuntimeError("the request was cancelled", "cancelled")

    def _sampler(self, wanted: Sampling) -> Sampler:
        """What was asked for, else the bundle's own defaults."""
        given = self._generation
        usual = given.get("temperature", 1.0) if given.get("do_sample") else 0.0
        return Sampler(
            float(usual if wanted.temperature is None else wanted.temperature),
            top_k=int(given.get("top_k", TOP_K) if wanted.top_k is None else wanted.top_k),
            top_p=float(given.get("top_p", TOP_P) if wanted.top_p is None else wanted.top_p),
            seed=wanted.seed,
        )

    def _end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer; after `<|tool_response>` it is the caller's turn."""
        given = self._generation.get("eos_token_id", ())
        ends = {*self._geometry.eos, *(given if isinstance(given, list) else [given] if given else ())}
        if self.tokenizer.control.response_open is not None:
            ends.add(self.tokenizer.control.response_open)
        return frozenset(ends)


def _text_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EdgeRuntimeError(f"{path.parent} has no {path.name}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeRuntimeError(f"{path} cannot be read: {error}") from None


def _generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json, {} if there is none."""
    path = folder / names.GENERATION_CONFIG
    if not path.exists():
        return {}
    try:
        config = json.loads(_text_file(path))
    except ValueError as error:
        raise EdgeRuntimeError(f"{path} is damaged: {error}") from None
    return config if isinstance(config, dict) else {}
