"""Requests to prompts: the template, media ready for their towers, what to leave out where it is all too long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.engine.onnx.prefix import token_keys
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.chat import Prompt, check_chat, expand, with_frames
from edge_runtime.video import MAX_SECONDS, load_video

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edge_runtime.engine.onnx.decoder import Decoder
    from edge_runtime.engine.onnx.encoders import Clip, Encoders, Heard, Picture
    from edge_runtime.engine.protocol import Request
    from edge_runtime.gemma.chat import Chat, ChatTemplate
    from edge_runtime.gemma.tokenizer import Tokenizer

ANSWER_ROOM = 256
"""Tokens that are kept free for an answer of no given length when older turns are left out, a quarter of the context at
most."""


@dataclass(frozen=True)
class Ready:
    """A prompt and what it is made of.

    Attributes:
        prompt: Token ids, with a span for each of `media`.
        media: Images and sounds, ready for their towers.
        keys: Of its tokens, see `prefix`.
        system_end: Where the tokens of the system turn end; 0: there is none.
        dropped: Turns of the conversation that were left out.
    """

    prompt: Prompt
    media: tuple[Clip | Picture | Heard, ...]
    keys: NDArray[np.int64]
    system_end: int = 0
    dropped: int = 0


class Prompts:
    """Makes prompts for one model."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, encoders: Encoders, *, bos: int, context: int
    ) -> None:
        self.tokenizer, self._template, self._encoders = tokenizer, template, encoders
        self._bos, self._context = bos, context

    def ready(self, request: Request, heard: Heard | None = None) -> Ready:
        """Checks a request, reads its media, makes its prompt. Computes nothing.

        Args:
            request: What is asked.
            heard: The sound of the last message, if it has one and that was taken in while it went on.

        Raises:
            EdgeRuntimeError: One clear line on what is wrong with it.
        """
        if request.raw is not None:
            ids = self.tokenizer.encode(request.raw)
            prompt = Prompt(tuple(ids if ids[:1] == [self._bos] else [self._bos, *ids]))
            return self._fitting(Ready(prompt, (), token_keys(prompt, ())))
        videos: dict[int, list[tuple[str, Any]]] = {}
        chat = self._checked(request, request.messages, videos)
        given = chat.media if heard is None else chat.media[:-1]
        media = [self._encoders.prepare(item, request.image_tokens, request.video_tokens) for item in given]
        whole = [*media, heard] if heard is not None else media
        ready = self._make(chat, whole, think=request.think)
        by_source = {id(item.source): made for item, made in zip(chat.media, whole, strict=True)}
        if request.overflow == "refuse":
            return self._fitting(ready)
        wanted = min(request.max_tokens or ANSWER_ROOM, max(1, self._context // 4))
        messages, dropped = list(request.messages), 0
        while len(ready.prompt.ids) + wanted > self._context:
            rest = without_oldest_turn(messages)
            if rest is None:
                break
            messages, dropped = rest, dropped + 1
            chat = self._checked(request, messages, videos)
            left = [by_source[id(item.source)] for item in chat.media]
            ready = self._make(chat, left, think=request.think, dropped=dropped)
        return self._fitting(ready)

    def text(self, request: Request) -> str:
        """A request's prompt as the template writes it, a placeholder for each image, sound and video.

        Raises:
            EdgeRuntimeError: The messages are not right.
        """
        return self._template.render(check_chat(request.messages, request.tools), think=request.think, sanitize=False)

    def chat_ids(self, chat: Chat, *, think: bool) -> list[int]:
        """Token ids of a conversation, a placeholder for each image and sound."""
        return self.tokenizer.encode_marked(self._template.render(chat, think=think))

    def _checked(
        self, request: Request, messages: Sequence[Mapping[str, Any]], videos: dict[int, list[tuple[str, Any]]]
    ) -> Chat:
        """The messages, checked, the pictures of videos in their place; `videos` keeps those that were read."""
        chat = check_chat(messages, request.tools)
        for item in chat.media:
            if item.kind == "video" and id(item.source) not in videos:
                # A quarter of the context is left for words; a picture comes with some ten tokens of time and frame.
                most = self._context * 3 // 4 // (self._encoders.frame_tokens(request.video_tokens) + 10)
                frames = load_video(item.source, max(1, min(MAX_SECONDS, most)))
                videos[id(item.source)] = [(frame.time, frame.image) for frame in frames]
        return with_frames(chat, videos, video_token=self.tokenizer.control.video is not None)

    def _make(self, chat: Chat, media: Sequence[Clip | Picture | Heard], *, think: bool, dropped: int = 0) -> Ready:
        counts = [(item.kind, ready.soft_tokens) for item, ready in zip(chat.media, media, strict=True)]
        prompt = expand(self.chat_ids(chat, think=think), self.tokenizer, counts)
        keys = token_keys(prompt, [item.digest for item in media])
        has_system = chat.messages[0]["role"] in {"system", "developer"} or bool(chat.tools) or think
        return Ready(prompt, tuple(media), keys, self._system_end(prompt) if has_system else 0, dropped)

    def _system_end(self, prompt: Prompt) -> int:
        """Where the second turn begins; 0 if there is none."""
        opening = self.tokenizer.turn_open
        places = [at for at, token in enumerate(prompt.ids) if token == opening]
        return places[1] if len(places) > 1 else 0

    def _fitting(self, ready: Ready) -> Ready:
        """What was given, if it leaves room for an answer."""
        if len(ready.prompt.ids) < self._context:
            return ready
        raise EdgeRuntimeError(
            f"prompt is {len(ready.prompt.ids)} tokens, the context is {self._context}: shorten the prompt or "
            "load the model with a larger context",
            "too_large",
        )


def without_oldest_turn(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """The conversation without its first question and all that answers it; None if there is only one.

    What stands before the first question (the system turn) stays.
    """
    users = [at for at, message in enumerate(messages) if message.get("role") == "user"]
    if len(users) < 2:
        return None
    return [*messages[: users[0]], *messages[users[1] :]]


def table_ids(prompt: Prompt, pad: int) -> NDArray[np.int64]:
    """A prompt's tokens as tables know them: `pad` for soft ones."""
    ids = np.array(prompt.ids, np.int64)
    for span in prompt.spans:
        ids[span.start : span.start + span.count] = pad
    return ids


def embeddings(
    decoder: Decoder,
    prompt: Prompt,
    features: Mapping[int, NDArray[np.float32]],
    ids: NDArray[np.int64],
    start: int,
    end: int,
) -> NDArray[np.float32]:
    """Embeddings of tokens start..end, the `features` of the prompt's spans, by their number, in them."""
    spliced = decoder.embed(ids[start:end])
    for number, span in enumerate(prompt.spans):
        first, last = max(span.start, start), min(span.start + span.count, end)
        if first < last:
            spliced[first - start : last - start] = features[number][first - span.start : last - span.start]
    return spliced
