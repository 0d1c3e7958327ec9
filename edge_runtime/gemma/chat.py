"""Messages to prompt: checks Hugging Face chat messages and renders them through the checkpoint's own template.

The template runs in jinja2's sandbox, set up as transformers sets it up, and sees plain data only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.tokenizer import MARK_START
from edge_runtime.gemma.tools import check_tools

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jinja2.nodes import Node
    from jinja2.parser import Parser

    from edge_runtime.gemma.tokenizer import Tokenizer

MediaKind = Literal["image", "audio", "video"]

_THOUGHTS = ("reasoning", "reasoning_content", "thinking", "thoughts")
"""Names under which clients keep the thoughts of an answer."""
_THOUGHT = re.compile(r"<\|channel>thought\n.*?<channel\|>", re.DOTALL)

ROLES = ("system", "developer", "user", "assistant", "model", "tool")


@dataclass(frozen=True)
class Media:
    """An image, a sound, a video or a picture of one, as its author gave it."""

    kind: MediaKind
    source: Any


@dataclass(frozen=True)
class Chat:
    """Checked messages, ready for a template.

    Attributes:
        messages: Plain JSON data, media items bare: `{"type": "image"}`.
        tools: In OpenAI's form, or None.
        media: In the order in which their placeholders appear.
        times: For each video, the times of its pictures, once `with_frames` has put these in the video's place.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    media: tuple[Media, ...]
    times: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class SoftSpan:
    """Where the soft tokens of one image or sound stand in a prompt: ids `start .. start + count - 1`."""

    kind: MediaKind
    start: int
    count: int


@dataclass(frozen=True)
class Prompt:
    """Token ids, with a span for each image and sound in order."""

    ids: tuple[int, ...]
    spans: tuple[SoftSpan, ...] = ()

    @property
    def images(self) -> list[tuple[int, int]]:
        """The first soft token of each image and picture of a video, and the end of them."""
        return [(span.start, span.start + span.count) for span in self.spans if span.kind != "audio"]


def check_chat(messages: Any, tools: Any = None) -> Chat:
    """Checks messages and tools and parts them from their media.

    Args:
        messages: Hugging Face's chat format: `role` and `content`, the content a string or a list of
            `{"type": "text", "text"}`, `{"type": "image", "image"}`, `{"type": "audio", "audio"}`,
            `{"type": "video", "video"}`.
            Assistant messages may have `tool_calls`, tool messages a `name` or `tool_call_id`.
        tools: See `gemma.tools.check_tools`; empty or None for none.

    Raises:
        EdgeRuntimeError: One line that names the message and what is wrong with it.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise EdgeRuntimeError("messages must be a list with at least one message")
    media: list[Media] = []
    call_names: dict[str, str] = {}
    plain = [_message(number, message, media, call_names) for number, message in enumerate(messages, 1)]
    return Chat(_without_old_thoughts(plain), check_tools(tools) if tools else None, tuple(media))


def _without_old_thoughts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without thoughts, but for those of calls since the last question: the turn they belong to goes on."""
    asked = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return [
        message
        if at > asked and message.get("tool_calls")
        else {key: value for key, value in message.items() if key not in _THOUGHTS}
        for at, message in enumerate(messages)
    ]


def _message(number: int, message: Any, media: list[Media], call_names: dict[str, str]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise EdgeRuntimeError(f"message {number} is not an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise EdgeRuntimeError(f"message {number} has the unknown role {role!r}; known are {', '.join(ROLES)}")
    plain = {key: _plain(value) for key, value in message.items() if value is not None and key != "content"}
    content = message.get("content")
    if role in ("assistant", "model"):
        content = _spoken(content)
    if calls := plain.get("tool_calls"):
        plain["tool_calls"] = _tool_calls(number, calls, call_names)
        plain["content"] = _content(number, content, media) if content else ""
        return plain
    if content is None:
        raise EdgeRuntimeError(f"message {number} has no content")
    if role == "tool":
        if "name" not in plain and (name := call_names.get(str(plain.get("tool_call_id")))):
            plain["name"] = name
        plain["content"] = _plain(content)
    else:
        plain["content"] = _content(number, content, media)
    return plain


def _spoken(content: Any) -> Any:
    """What the model said, without the thoughts that a caller may have left in its words."""
    if isinstance(content, str):
        return _THOUGHT.sub("", content)
    if isinstance(content, (list, tuple)):
        return [
            {**item, "text": _THOUGHT.sub("", item["text"])}
            if isinstance(item, dict) and isinstance(item.get("text"), str)
            else item
            for item in content
        ]
    return content


def _content(number: int, content: Any, media: list[Media]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise EdgeRuntimeError(f"message {number}: content must be a string or a list, not {type(content).__name__}")
    return [_item(number, item, media) for item in content]


def _item(number: int, item: Any, media: list[Media]) -> dict[str, Any]:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "text":
        if not isinstance(item.get("text"), str):
            raise EdgeRuntimeError(f"message {number}: a text item has no text")
        return {"type": "text", "text": item["text"]}
    if kind in ("image", "audio", "video"):
        source = next((item[key] for key in (kind, "path", "url") if item.get(key) is not None), None)
        if source is None:
            raise EdgeRuntimeError(f"message {number}: the {kind} item has no {kind}")
        media.append(Media(kind, source))
        return {"type": kind}
    raise EdgeRuntimeError(
        f"message {number} has content of the unknown type {kind!r}; known are text, image, audio, video"
    )


def _tool_calls(number: int, calls: Any, call_names: dict[str, str]) -> list[dict[str, Any]]:
    """Calls of an earlier answer; their arguments may be the JSON text that OpenAI's clients keep."""
    checked = []
    for given in calls if isinstance(calls, list) else [None]:
        call: dict[str, Any] = given if isinstance(given, dict) else {}
        function = call.get("function") or call
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise EdgeRuntimeError(f"message {number}: a tool call has no function name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                arguments = None
        if not isinstance(arguments, dict):
            raise EdgeRuntimeError(f"message {number}: the arguments of {function['name']} are not a JSON object")
        if call.get("id") is not None:
            call_names[str(call["id"])] = function["name"]
        wrapped = {**call, "type": "function", "function": {**function, "arguments": arguments}}
        checked.append({key: wrapped[key] for key in wrapped if key not in ("name", "arguments")})
    return checked


def _plain(value: Any) -> Any:
    """`value` rebuilt from plain JSON types, anything else a name in brackets: the sandbox sees no methods."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


class ChatTemplate:
    """A checkpoint's `chat_template.jinja`."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        """Compiles the template.

        Raises:
            EdgeRuntimeError: The template is not valid.
        """
        self._tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise EdgeRuntimeError(f"the chat template is not valid: {error}") from None

    def render(self, chat: Chat, *, think: bool = False, sanitize: bool = True) -> str:
        """The prompt as text, ending where the model is to answer.

        Control tokens in the callers' own words are wrapped in marks for `Tokenizer.encode_marked`, unless `sanitize`
        is off.

        Raises:
            EdgeRuntimeError: The template refuses the messages.
        """
        mark = self._tokenizer.mark if sanitize else _same
        try:
            text = self._template.render(
                messages=mark(chat.messages),
                tools=mark(chat.tools),
                documents=None,
                add_generation_prompt=True,
                enable_thinking=think,
                **self._tokenizer.special_tokens,
            )
            return self._with_times(text, chat.times)
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise EdgeRuntimeError(f"the chat template refuses these messages: {error}") from None

    def _with_times(self, text: str, times: Sequence[Sequence[str]]) -> str:
        """The placeholder of each video as those of its pictures, each after its time, as transformers has it."""
        if not times:
            return text
        placeholder = self._tokenizer.token_text(self._tokenizer.control.video or 0)
        parts = re.split(f"(?<!{MARK_START}){re.escape(placeholder)}", text)
        if len(parts) != len(times) + 1:
            raise EdgeRuntimeError("the model's chat template has no place for video")
        videos = [" ".join(f"{time} {placeholder}" for time in each) for each in times]
        return "".join(part + video for part, video in zip(parts, [*videos, ""], strict=True))


def with_frames(chat: Chat, frames: Mapping[int, Sequence[tuple[str, Any]]], *, video_token: bool) -> Chat:
    """A chat with its videos as pictures.

    Args:
        chat: As `check_chat` gives it.
        frames: By `id` of a video's source: time and picture of each.
        video_token: Whether the tokenizer has a placeholder for video; else pictures and times stand in its place.
    """
    if not any(item.kind == "video" for item in chat.media):
        return chat
    media: list[Media] = []
    times = []
    for item in chat.media:
        if item.kind == "video":
            found = frames[id(item.source)]
            times.append(tuple(time for time, _ in found))
            media += [Media("video" if video_token else "image", picture) for _, picture in found]
        else:
            media.append(item)
    if video_token:
        return replace(chat, media=tuple(media), times=tuple(times))
    left = iter(times)
    messages = [
        message
        if isinstance(message["content"], str) or message["role"] == "tool"
        else {**message, "content": [part for item in message["content"] for part in _as_pictures(item, left)]}
        for message in chat.messages
    ]
    return replace(chat, messages=messages, media=tuple(media))


def _as_pictures(item: dict[str, Any], times: Iterator[tuple[str, ...]]) -> list[dict[str, Any]]:
    if item["type"] != "video":
        return [item]
    return [part for time in next(times) for part in ({"type": "text", "text": time}, {"type": "image"})]


def expand(ids: Sequence[int], tokenizer: Tokenizer, counts: Sequence[tuple[MediaKind, int]]) -> Prompt:
    """Puts begin, soft tokens and end in the place of each image and audio placeholder.

    Args:
        ids: A tokenized prompt with one placeholder per image or sound.
        tokenizer: Gives the ids of the control tokens.
        counts: Kind and number of soft tokens of each, in order.

    Raises:
        EdgeRuntimeError: Placeholders and media do not match.
    """
    control = tokenizer.control
    frames = {
        control.image: ("image", control.boi, control.eoi),
        control.audio: ("audio", control.boa, control.eoa),
        control.video: ("video", control.boi, control.eoi),
    }
    frames.pop(None, None)
    left = list(counts)
    out: list[int] = []
    spans: list[SoftSpan] = []
    for token in ids:
        if token not in frames:
            out.append(token)
            continue
        kind, begin, end = frames[token]
        if not left or left[0][0] != kind:
            raise EdgeRuntimeError(f"the prompt has a place for an {kind} that was not given")
        _, count = left.pop(0)
        out += [] if begin is None else [begin]
        spans.append(SoftSpan(counts[len(spans)][0], len(out), count))
        out += [token] * count + ([] if end is None else [end])
    if left:
        raise EdgeRuntimeError(f"the model's chat template has no place for {left[0][0]}")
    return Prompt(tuple(out), tuple(spans))


def _same(value: Any) -> Any:
    return value


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """`{% generation %}..{% endgeneration %}` marks the assistant's words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
