"""Messages to prompt: checks Hugging Face chat messages and renders them through the checkpoint's own template.

The template runs in jinja2's sandbox, set up as transformers sets it up, and sees plain data only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.tools import check_tools

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2.nodes import Node
    from jinja2.parser import Parser

    from edge_runtime.gemma.tokenizer import Tokenizer

MediaKind = Literal["image", "audio"]

ROLES = ("system", "developer", "user", "assistant", "model", "tool")


@dataclass(frozen=True)
class Media:
    """An image or a sound of a message, as its author gave it."""

    kind: MediaKind
    source: Any


@dataclass(frozen=True)
class Chat:
    """Checked messages, ready for a template.

    Attributes:
        messages: Plain JSON data, media items bare: `{"type": "image"}`.
        tools: In OpenAI's form, or None.
        media: In the order in which their placeholders appear.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    media: tuple[Media, ...]


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
        """The first soft token of each image, and the end of them."""
        return [(span.start, span.start + span.count) for span in self.spans if span.kind == "image"]


def check_chat(messages: Any, tools: Any = None) -> Chat:
    """Checks messages and tools and parts them from their media.

    Args:
        messages: Hugging Face's chat format: `role` and `content`, the content a string or a list of
            `{"type": "text", "text"}`, `{"type": "image", "image"}`, `{"type": "audio", "audio"}`.
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
    return Chat(plain, check_tools(tools) if tools else None, tuple(media))


def _message(number: int, message: Any, media: list[Media], call_names: dict[str, str]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise EdgeRuntimeError(f"message {number} is not an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise EdgeRuntimeError(f"message {number} has the unknown role {role!r}; known are {', '.join(ROLES)}")
    plain = {key: _plain(value) for key, value in message.items() if value is not None and key != "content"}
    content = message.get("content")
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
    if kind in ("image", "audio"):
        source = next((item[key] for key in (kind, "path", "url") if item.get(key) is not None), None)
        if source is None:
            raise EdgeRuntimeError(f"message {number}: the {kind} item has no {kind}")
        media.append(Media(kind, source))
        return {"type": kind}
    raise EdgeRuntimeError(f"message {number} has content of the unknown type {kind!r}; known are text, image, audio")


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
            return self._template.render(
                messages=mark(chat.messages),
                tools=mark(chat.tools),
                documents=None,
                add_generation_prompt=True,
                enable_thinking=think,
                **self._tokenizer.special_tokens,
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise EdgeRuntimeError(f"the chat template refuses these messages: {error}") from None


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
