"""Our requests in OpenAI's words: messages with their media, tools, schema and sampling as JSON.

What callers write is data: the model's control tokens in it are broken up, so that no text can end a turn, call a tool
or stand for a picture. (llama.cpp itself reads control tokens wherever they stand.)
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime import media
from edge_runtime.engine.sampling import Sampler
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.chat import check_chat, with_frames
from edge_runtime.video import MAX_SECONDS, load_video

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.engine.protocol import Request, Sampling
    from edge_runtime.gemma.chat import Chat
    from edge_runtime.gemma.image import PatchGrid

TEMPERATURE, TOP_K, TOP_P = 1.0, 64, 0.95
"""What Gemma 4's makers recommend, where the file says nothing."""

_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_COMPACT = {"x-guidance": {"whitespace_flexible": False}}
"""For a llama.cpp with llguidance, which else allows blanks without end; others pass it over."""
_LOOK_BACK = 4096
"""Tokens that penalties look at: prompt and answer, for llama.cpp knows no difference."""
_BREAK = "\u2060"
"""WORD JOINER: invisible, and enough to keep a control token from being one."""
_ROLES = {"model": "assistant", "developer": "system"}
_SEEDS = 2**32 - 1  # llama.cpp's seeds; the last one means "any"
FRAME_TOKENS = 70
"""Soft tokens of a video's picture."""
_TIME_TOKENS = 10
"""Tokens of its time, begin and end, at most."""
_MARKERS = ("<__media__>", "<__image__>")


class Plain:
    """Breaks up control tokens."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """Takes the control tokens of the model."""
        words = sorted({*tokens, *_MARKERS}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, words)))

    def __call__(self, value: Any) -> Any:
        """`value` (text, or lists and objects of it) with every control token in it broken up."""
        if isinstance(value, str):
            return self._pattern.sub(lambda match: match[0][0] + _BREAK + match[0][1:], value)
        if isinstance(value, dict):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(item) for item in value]
        return value


@dataclass(frozen=True)
class Abilities:
    """What a model takes, beyond text, and how.

    Attributes:
        grid: How images are cut by Gemma 4's towers; None: images are sent as they are.
        image: Whether it takes images.
        audio_s: The longest sound, 0 for none.
    """

    image: bool = False
    audio_s: float = 0.0
    grid: PatchGrid | None = None


def chat_body(request: Request, abilities: Abilities, plain: Plain, context: int = 4096) -> dict[str, Any]:
    """The part of a chat request that says what is asked.

    Args:
        request: The request.
        abilities: What the model takes.
        plain: Breaks up control tokens.
        context: Tokens of prompt and answer; the pictures of a video take three quarters of it at most.

    Raises:
        EdgeRuntimeError: The messages are not right, or hold what the model does not take.
    """
    chat = check_chat(request.messages, request.tools)
    if any(item.kind == "video" for item in chat.media):
        if not abilities.image:
            raise EdgeRuntimeError("this model takes no video", "unsupported_media")
        chat = _with_pictures(chat, request.video_tokens or FRAME_TOKENS, context * 3 // 4)
    waiting = iter(chat.media)
    messages = []
    for message in chat.messages:
        role = _ROLES.get(message["role"], message["role"])
        out: dict[str, Any] = {"role": role}
        content = message.get("content")
        if isinstance(content, list) and role != "tool":
            out["content"] = [
                {"type": "text", "text": plain(item["text"])}
                if item["type"] == "text"
                else _part(next(waiting), abilities, request.image_tokens)
                for item in content
            ]
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            out["content"] = plain(text)
        if calls := message.get("tool_calls"):
            out["tool_calls"] = [_call(number, call, plain) for number, call in enumerate(calls)]
        out |= {key: plain(message[key]) for key in ("name", "tool_call_id") if key in message}
        messages.append(out)
    body: dict[str, Any] = {"messages": messages}
    if chat.tools:
        body |= _tools(chat.tools, request.tool_choice, plain)
    if request.schema is not None:
        schema = {**request.schema, **_COMPACT}
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    if request.choice is not None:
        body["grammar"] = "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in request.choice)
    if request.thinking_budget is not None:
        body["thinking_budget_tokens"] = request.thinking_budget
    return body


def media_of(body: dict[str, Any]) -> list[str]:
    """Images and sounds of a chat body in their order, as base64."""
    contents = [message["content"] for message in body["messages"] if isinstance(message["content"], list)]
    parts = [part for content in contents for part in content]
    urls = [part["image_url"]["url"].partition(",")[2] if "image_url" in part else "" for part in parts]
    sounds = [part["input_audio"]["data"] if "input_audio" in part else "" for part in parts]
    return [image or sound for image, sound in zip(urls, sounds, strict=True) if image or sound]


def last_words(request: Request) -> str:
    """The text to continue for a model that knows no turns: the texts of all messages, one below the other.

    Raises:
        EdgeRuntimeError: There is more than text.
    """
    chat = check_chat(request.messages, request.tools)
    if chat.media:
        raise EdgeRuntimeError(f"this model takes no {chat.media[0].kind}", "unsupported_media")
    if chat.tools or request.think or request.schema is not None:
        raise EdgeRuntimeError(
            "this model has no chat template: it continues text, and knows no tools, thoughts or schemas"
        )
    texts = []
    for message in chat.messages:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [item["text"] for item in content]
    return "\n".join(texts)


def sampling_body(sampling: Sampling, defaults: dict[str, float]) -> dict[str, Any]:
    """How tokens are chosen, in the order of transformers; always with a seed, so that an answer can be given again.

    Args:
        sampling: What was asked for.
        defaults: `temperature`, `top_k` and `top_p` where nothing was.

    Raises:
        EdgeRuntimeError: A setting outside its range.
    """
    values: dict[str, Any] = {
        name: usual if (given := getattr(sampling, name)) is None else given
        for name, usual in (_NEUTRAL | defaults).items()
    }
    values["top_k"] = int(values["top_k"])
    Sampler(**values, logit_bias=sampling.logit_bias, seed=sampling.seed)
    repetition = values.pop("repetition_penalty")
    if (repetition, values["presence_penalty"], values["frequency_penalty"]) != (1.0, 0.0, 0.0):
        values |= {"repeat_penalty": repetition, "repeat_last_n": _LOOK_BACK}
    values["seed"] = random.randrange(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS  # noqa: S311
    if sampling.logit_bias:
        values["logit_bias"] = [[token, bias] for token, bias in sampling.logit_bias.items()]
    return values | {"samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"]}


def picture(source: Any, grid: PatchGrid | None, image_tokens: int | None) -> bytes:
    """An image as PNG, in the size in which Gemma 4's processor would have it, which llama.cpp then leaves alone.

    Raises:
        EdgeRuntimeError: It cannot be read, or is too thin.
    """
    from PIL import Image as pil  # noqa: N813, PLC0415

    image = media.load_image(source)
    if grid is not None:
        grid = grid.with_budget(image_tokens) if image_tokens is not None else grid
        image = pil.fromarray(media.resize(image, grid.target_size(*image.size)))
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def wav(samples: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """float32 samples at 16 kHz as a WAV file of float32, so that nothing is rounded."""
    data = np.ascontiguousarray(samples, np.float32).tobytes()
    rate = media.SAMPLE_RATE
    form = struct.pack("<HHIIHH", 3, 1, rate, 4 * rate, 4, 32)
    fact = struct.pack("<4sII", b"fact", 4, len(samples))
    chunks = struct.pack("<4sI", b"fmt ", len(form)) + form + fact + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


def _with_pictures(chat: Chat, tokens: int, room: int) -> Chat:
    """Videos as their pictures of `tokens` soft tokens, each after its time; no video takes more than `room` tokens."""
    videos = {id(item.source): item.source for item in chat.media if item.kind == "video"}
    most = max(1, min(MAX_SECONDS, room // (tokens + _TIME_TOKENS)))
    frames = {
        key: [(frame.time, _Frame(frame.image, tokens)) for frame in load_video(source, most)]
        for key, source in videos.items()
    }
    return with_frames(chat, frames, video_token=False)


def _tools(tools: list[dict[str, Any]], choice: str | Mapping[str, Any], plain: Plain) -> dict[str, Any]:
    """Tools, and whether one must be called: one that is named is the only one that is offered."""
    if isinstance(choice, str):
        return {"tools": plain(tools), "tool_choice": choice}
    named = [tool for tool in tools if tool["function"]["name"] == choice.get("name")]
    if not named:
        raise EdgeRuntimeError(f"tool_choice names {choice.get('name')!r}, which is none of the tools")
    return {"tools": plain(named), "tool_choice": "required"}


@dataclass(frozen=True)
class _Frame:
    """A picture of a video, with the soft tokens that it may take."""

    image: Any
    tokens: int


def _part(item: Any, abilities: Abilities, image_tokens: int | None) -> dict[str, Any]:
    if item.kind == "image":
        if not abilities.image:
            raise EdgeRuntimeError("this model takes no images", "unsupported_media")
        source, tokens = item.source, image_tokens
        if isinstance(source, _Frame):
            source, tokens = source.image, source.tokens
        data = base64.b64encode(picture(source, abilities.grid, tokens)).decode("ascii")
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    if not abilities.audio_s:
        raise EdgeRuntimeError("this model takes no audio", "unsupported_media")
    samples = media.load_audio(item.source)
    seconds = len(samples) / media.SAMPLE_RATE
    if seconds > abilities.audio_s:
        raise EdgeRuntimeError(
            f"the audio lasts {seconds:.1f} s; this model takes {abilities.audio_s:.0f} s at most", "too_large"
        )
    data = base64.b64encode(wav(samples)).decode("ascii")
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def _call(number: int, call: dict[str, Any], plain: Plain) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(plain(function["arguments"]), ensure_ascii=False)
    named = {"name": plain(function["name"]), "arguments": arguments}
    return {"id": str(call.get("id") or f"call_{number}"), "type": "function", "function": named}
