"""Answers requests with a bundle: prompt, soft tokens, prefill in chunks, decode token by token."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.bundle.checksums import Checksums
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.engine.answer import Answer
from edge_runtime.engine.choosing import chooser
from edge_runtime.engine.constrain import Forms
from edge_runtime.engine.onnx.decoder import Decoder
from edge_runtime.engine.onnx.drafter import STATE, Drafter
from edge_runtime.engine.onnx.encoders import Encoders
from edge_runtime.engine.onnx.forcing import Forcing
from edge_runtime.engine.onnx.kv_cache import kv_type_of
from edge_runtime.engine.onnx.listening import Listening
from edge_runtime.engine.onnx.memory import image_limit, plan_and_check
from edge_runtime.engine.onnx.packed import PackedGraphs
from edge_runtime.engine.onnx.parts import decoder_and_tokenizer, generation_config, text_file
from edge_runtime.engine.onnx.prefix import Lru
from edge_runtime.engine.onnx.prepared import Prepared
from edge_runtime.engine.onnx.prompts import Prompts, embeddings, table_ids
from edge_runtime.engine.onnx.seats import Seats, Turns
from edge_runtime.engine.onnx.session import CPU, SPIN_US, available, default_threads
from edge_runtime.engine.onnx.shelf import Shelf
from edge_runtime.engine.protocol import Info, Piece, Timing
from edge_runtime.engine.speculative import Guesses, Habits, decode
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.chat import ChatTemplate

if TYPE_CHECKING:
    import contextlib
    import threading
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.encoders import Heard
    from edge_runtime.engine.onnx.prompts import Ready
    from edge_runtime.engine.onnx.seats import Seat
    from edge_runtime.engine.protocol import Request

CONTEXT = 4096

MAX_SESSIONS = 64

SHARED_CHUNK = 64
"""Tokens a step while other requests run, so that none of them waits long for its next token."""


class OnnxEngine:
    """A bundle, loaded. `sessions` requests at a time; another one meanwhile is refused as `busy`.

    Attributes:
        memory: What it takes, worked out before it was loaded.
        forcing: What it holds likely, for those who measure.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context: int | None = None,
        threads: int | None = None,
        name: str | None = None,
        kv_type: str | None = None,
        memory_budget: int | None = None,
        sessions: int = 1,
        providers: str = "cpu",
        cache: Path | None = None,
        spin_us: int | None = None,
    ) -> None:
        """Loads a bundle; the towers are opened when first needed.

        Args:
            folder: The bundle.
            context: Tokens that prompt and answer may have together; None: `CONTEXT`, or the model's limit if less.
            threads: To compute with; None: the cores there are, four at most.
            name: What the model is called; None: as in the bundle.
            kv_type: How keys and values are kept: "fp32", "fp16" or "int8"; None: fp32, with CUDA fp16.
            memory_budget: Bytes that it may take; None: what the machine has.
            sessions: Requests that may run at a time.
            providers: "cpu", or "cuda" where ONNX Runtime can, which it says if it cannot.
            cache: Folder for what can be made anew: packed weights, states of system turns; None: nothing is kept.
            spin_us: Microseconds for which the decoder's threads wait for work before they sleep; 0: they sleep at
                once; None: `SPIN_US`.

        Raises:
            EdgeRuntimeError: No bundle, a damaged one, a context that the model does not have, or too little memory.
        """
        started = time.perf_counter()
        manifest = read_manifest(folder)
        limit = manifest.geometry.text.max_positions
        context = min(CONTEXT, limit) if context is None else context
        if not 1 < context <= limit:
            raise EdgeRuntimeError(f"context is {context}; this model takes 2 to {limit} tokens")
        if threads is not None and threads < 1:
            raise EdgeRuntimeError(f"threads is {threads}; it must be 1 or more")
        spin_us = SPIN_US if spin_us is None else spin_us
        if spin_us < 0:
            raise EdgeRuntimeError(f"spin_us is {spin_us}; it must be 0 or more")
        threads, wanted = threads or default_threads(), available(providers)
        kind = kv_type_of(kv_type, gpu=wanted != CPU)
        self._name, self._geometry = name or manifest.name, manifest.geometry
        checksums = Checksums.open(folder, manifest.files)
        if not 1 <= sessions <= MAX_SESSIONS:
            raise EdgeRuntimeError(f"sessions is {sessions}; it must be 1 to {MAX_SESSIONS}")
        packed = PackedGraphs.of(folder, manifest, cache if wanted == CPU else None)
        self.memory = plan_and_check(
            manifest,
            context=context,
            kv_type=kind,
            sessions=sessions,
            mapped=packed is not None,
            prefill=packed.prefill if packed else 0,
            budget=memory_budget,
        )
        checksums.check(*(file for file in names.COPIED if file in manifest.files))
        self._generation = generation_config(folder)
        kept = Lru(self.memory.prefix_cache)
        self._decoder, self.tokenizer = decoder_and_tokenizer(
            folder,
            lambda: Decoder(
                folder,
                manifest,
                context=context,
                threads=threads,
                checksums=checksums,
                kv_type=kind,
                packed=packed,
                providers=wanted,
                prefill=self.memory.prefill > 0,
                spin_us=spin_us,
            ),
            at_once=self.memory.at_once,
        )
        template = ChatTemplate(text_file(folder / names.CHAT_TEMPLATE), self.tokenizer)
        largest = image_limit(manifest, self.memory, memory_budget)
        self._encoders = Encoders(
            folder, manifest, threads, checksums, kept=kept, packed=packed, providers=wanted, image_limit=largest
        )
        self._prompts = Prompts(self.tokenizer, template, self._encoders, bos=self._geometry.bos, context=context)
        decoders = [self._decoder, *(self._decoder.another() for _ in range(sessions - 1))]
        # Its head reads the decoder's own keys and values, which it knows as float32.
        self._drafter = None
        if names.DRAFTER in manifest.files and kind == "fp32":
            self._drafter = Drafter(folder, manifest, context=context, threads=threads, checksums=checksums)
            for decoder in decoders:
                decoder.watch([STATE])
        self._habits = Habits()
        self._shelf = Shelf.of(cache, manifest, self._decoder.cache.layout) if cache else None
        self._seats, self._turns = Seats(decoders, kept, self._shelf), Turns()
        self._ends = self._end_tokens()
        self._forms = Forms(self.tokenizer, self._ends, self._geometry.text.vocab_size)
        self.forcing = Forcing(self._decoder, self._encoders, self._prompts, self._geometry, self._ends)
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
        return self.answer(self.prepare(request))

    def prepare(self, request: Request, heard: Heard | None = None) -> Prepared:
        """Checks a request, reads its media, makes its prompt. Computes nothing; for `heard` see `Prompts.ready`.

        Raises:
            EdgeRuntimeError: One clear line on what is wrong with it.
        """
        ready = self._prompts.ready(request, heard)
        room = self._decoder.context - len(ready.prompt.ids)
        wanted = request.max_tokens if request.max_tokens is not None else self._generation.get("max_new_tokens", room)
        if wanted < 1:
            raise EdgeRuntimeError(f"max_tokens is {wanted}; it must be 1 or more")
        answer = Answer(
            self.tokenizer, ready.prompt.ids, ends=self._ends, stop=request.stop, max_tokens=min(int(wanted), room)
        )
        sampler = chooser(
            request,
            self._generation,
            tokenizer=self.tokenizer,
            forms=self._forms,
            prompt=ready.prompt.ids,
            ends=self._ends,
        )
        speculative = self._drafter is not None if request.speculative is None else request.speculative
        return Prepared(ready, sampler, answer, request.cancel, speculative)

    def prompt_text(self, request: Request) -> str:
        """See `Prompts.text`."""
        return self._prompts.text(request)

    def tokens(self, prepared: Prepared) -> Generator[int | None, None, None]:
        """Token ids of the answer, without end; None after each part of the prompt.

        Raises:
            EdgeRuntimeError: `cancelled`, before the next token or chunk; `busy`.
        """
        with self._sit(prepared) as seat:
            yield from self._tokens(prepared, seat)

    def prefill(self, prepared: Prepared) -> Generator[None, None, NDArray[np.float32]]:
        """Reads the prompt chunk by chunk; returns the logits after its last token, float32 `[1, vocab]`."""
        with self._sit(prepared) as seat:
            return (yield from self._prefill(prepared, seat))

    def listen(self, request: Request) -> Listening:
        """Begins to take in the sound of a request's last message while it goes on; see `Listening`.

        Raises:
            EdgeRuntimeError: The model takes no audio, or its tower looks ahead.
        """
        return Listening(self, request, self._encoders.listen())

    def read_ahead(self, ready: Ready, count: int) -> None:
        """Reads the first `count` tokens of a prompt, so that they need not be read when it is complete.

        Does nothing if all sequences are taken.
        """
        if self._closed or self._seats.busy == len(self._seats):
            return
        with self._seats.take(ready.keys[: count + 1], ready.prompt.images, ready.system_end) as seat:
            for _ in self._read(ready, seat, count, None, keep=0):
                pass

    def _sit(self, prepared: Prepared) -> contextlib.AbstractContextManager[Seat]:
        ready = prepared.ready
        return self._seats.take(ready.keys, ready.prompt.images, ready.system_end)

    def _tokens(self, prepared: Prepared, seat: Seat) -> Generator[int | None, None, None]:
        logits = yield from self._prefill(prepared, seat)
        if prepared.speculative:
            yield from self._several(prepared, seat, logits)
        while True:
            token = prepared.sampler.pick(logits[-1])
            yield token
            self._check(prepared.cancel)
            ids = np.array([token], np.int64)
            with self._turns.turn():
                logits = seat.step(ids, ids, self._decoder.embed(ids))

    def _several(self, prepared: Prepared, seat: Seat, logits: NDArray[np.float32]) -> Generator[int, None, None]:
        """The same tokens, several a step where guesses are right."""
        decoder, drafter = seat.decoder, self._drafter

        def step(tokens: Sequence[int]) -> NDArray[np.float32]:
            self._check(prepared.cancel)
            ids = np.array(tokens, np.int64)
            with self._turns.turn():
                return seat.step(ids, ids, decoder.embed(ids), keep=len(ids))

        def guess(token: int, accepted: int, count: int) -> list[int]:
            state = decoder.watched.get(STATE)
            if drafter is None or state is None:
                return []
            with self._turns.turn():
                return drafter.guess(decoder, token, state[accepted], count)

        prepared.answer.guesses = Guesses(
            prepared.prompt.ids,
            lambda: decoder.context - decoder.cache.total,
            guess if drafter is not None else None,
            habits=self._habits,
        )
        yield from decode(logits, step, seat.go_back, prepared.sampler.pick, prepared.answer.guesses)

    def _prefill(self, prepared: Prepared, seat: Seat) -> Generator[None, None, NDArray[np.float32]]:
        ready = prepared.ready
        logits = yield from self._read(ready, seat, len(ready.keys), prepared.cancel)
        self._seats.mark(seat)
        return logits

    def _read(
        self, ready: Ready, seat: Seat, count: int, cancel: threading.Event | None, keep: int = 1
    ) -> Generator[None, None, NDArray[np.float32]]:
        """Reads a prompt's tokens from the seat's start up to `count`; returns the logits after the last `keep`."""
        ids, features, decoder = table_ids(ready.prompt, self._geometry.pad), {}, seat.decoder
        for number, (span, item) in enumerate(zip(ready.prompt.spans, ready.media, strict=True)):
            if seat.start < span.start + span.count and span.start < count:
                self._check(cancel)
                with self._turns.turn():
                    features[number] = self._encoders.encode(item)
                yield
        decoder.prefetch(ids[seat.start : count])
        logits: NDArray[np.float32] | None = None
        start = seat.start
        while start < count:
            self._check(cancel)
            end = decoder.cut(start, count, decoder.chunk if self._seats.busy < 2 else SHARED_CHUNK)
            end = next((stop for stop in seat.stops if start < stop < end), end)
            with self._turns.turn():
                spliced = embeddings(self._decoder, ready.prompt, features, ids, start, end)
                logits = seat.step(ids[start:end], ready.keys[start:end], spliced, keep if end == count else 0)
                if end in seat.stops:
                    self._seats.save(seat, for_good=end == ready.system_end)
            start = end
            yield
        if logits is None:
            raise EdgeRuntimeError("the prompt is empty")
        return logits

    def close(self) -> None:
        """Closes files and sessions; a second call does nothing."""
        if not self._closed:
            self._closed = True
            if self._shelf is not None:
                self._shelf.close()
            self._decoder.close()
            self._encoders.close()

    def answer(self, prepared: Prepared) -> Generator[Piece, None, None]:
        """Runs a prepared request; see `Engine.run`."""
        if self._closed:
            raise EdgeRuntimeError("the model is closed")
        with self._sit(prepared) as seat:
            yield from self._answer(prepared, seat)

    def _answer(self, prepared: Prepared, seat: Seat) -> Generator[Piece, None, None]:
        answer = prepared.answer
        started = first = time.perf_counter()
        text = thoughts = ""
        scored = 0
        for token in self._tokens(prepared, seat):
            if token is None:
                yield Piece("")
                continue
            if not answer.tokens:
                first = time.perf_counter()
            text = answer.push(token)
            if answer.done:
                break
            before, thoughts = thoughts, answer.parser.thoughts
            logprobs = (prepared.sampler.logprobs or [])[scored:]
            scored += len(logprobs)
            yield Piece(text, tool_call=answer.called, thought=thoughts[len(before) :], scored=logprobs or None)
        ended = time.perf_counter()
        tail, reason = answer.finish()
        yield Piece(
            text + tail,
            finish_reason=reason,
            usage=prepared.usage(seat.start),
            timing=Timing(
                load_s=round(self._load_s, 3),
                first_token_s=round(first - started, 3),
                decode_tokens_per_s=round((answer.tokens - 1) / (ended - first), 1) if answer.tokens > 1 else 0.0,
            ),
            tool_calls=[call.to_json() for call in answer.parser.tool_calls],
            thoughts=answer.parser.thoughts,
            logprobs=prepared.sampler.logprobs,
            tool_call=answer.called,
            thought=answer.parser.thoughts[len(thoughts) :],
            scored=(prepared.sampler.logprobs or [])[scored:] or None,
        )

    @staticmethod
    def _check(cancel: threading.Event | None) -> None:
        if cancel is not None and cancel.is_set():
            raise EdgeRuntimeError("the request was cancelled", "cancelled")

    def _end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer; after `<|tool_response>` it is the caller's turn."""
        given = self._generation.get("eos_token_id", ())
        ends = {*self._geometry.eos, *(given if isinstance(given, list) else [given] if given else ())}
        if self.tokenizer.control.response_open is not None:
            ends.add(self.tokenizer.control.response_open)
        return frozenset(ends)
