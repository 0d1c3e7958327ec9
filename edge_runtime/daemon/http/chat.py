"""The body of `/v1/chat/completions` becomes a request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.daemon.http import checks
from edge_runtime.daemon.http.messages import Reader
from edge_runtime.daemon.http.problems import Problem, bad, of_code
from edge_runtime.daemon.limits import ID_LENGTH, SKELETON_BYTES, json_object
from edge_runtime.daemon.requests import TOKEN_BYTES, Request
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.settings import Settings

MOST_STOPS = 16
MOST_TOOLS = 128
MOST_ALTERNATIVES = 20
MOST_BIASES = 1024
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and how its answer is to be given.

    Attributes:
        request: What is asked.
        model: The model's name as the client gave it; None: it gave none.
        client: Who asks, as the client says: its `user`.
        usage: Whether a stream ends with the token counts.
    """

    request: Request
    model: str | None
    client: str
    usage: bool


# Numbers and words that pass as they are, by the name of the argument of `Model.chat`.
_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "temperature": checks.number(0, 2),
    "top_p": checks.number(0, 1),
    "top_k": checks.whole(1, 1_000_000),
    "min_p": checks.number(0, 1),
    "repetition_penalty": checks.number(0.1, 10),
    "presence_penalty": checks.number(-2, 2),
    "frequency_penalty": checks.number(-2, 2),
}
_TOKENS = checks.whole(1, 1_000_000)
# What would change the answer and cannot be done: the value that asks for nothing, beside null.
_REFUSED: dict[str, Any] = {
    "n": 1,
    "functions": [],
    "function_call": "none",
    "audio": None,
    "web_search_options": None,
}


def parse(payload: bytes, settings: Settings, context: int) -> Question:
    """The question that a body asks. What is not known there is ignored, as clients send much that is new.

    Args:
        payload: JSON.
        settings: The limits.
        context: Tokens that the model takes.

    Raises:
        Problem: Says what is wrong.
    """
    limits = settings.limits
    try:
        body = json_object(payload, limits.json_depth)
    except EdgeRuntimeError as error:
        raise of_code(error.code, str(error)) from None
    body = {name: value for name, value in body.items() if value is not None}
    for name, nothing in _REFUSED.items():
        if name in body and body[name] != nothing:
            raise bad(name, "is not supported" if nothing is None else f"only {nothing!r} is supported")
    checks.items("modalities", body.get("modalities", ["text"]), 1, 1)
    checks.member("text")("modalities", body.get("modalities", ["text"])[0])
    reader = Reader(limits)
    messages = reader.read(body.get("messages"))
    if len(payload) - reader.media > context * TOKEN_BYTES + SKELETON_BYTES:
        message = f"more text than {context} tokens can hold"
        raise Problem(400, message, code="context_length_exceeded", param="messages")
    options = _options(body)
    if reader.images and options.get("tools") and not settings.model.vision_tools:
        raise bad("tools", "not with images, whose words could call them (see model.vision_tools)")
    stream_options = checks.mapping("stream_options", body.get("stream_options", {}))
    request = Request(
        "ask",
        messages=messages,
        options=options,
        stream=checks.truth("stream", body.get("stream", False)),
        priority=checks.whole(-1000, 1000)("priority", body.get("priority", 0)),
        deadline_s=checks.number(0, 31_536_000)("deadline_s", body["deadline_s"]) if "deadline_s" in body else None,
    )
    return Question(
        request,
        checks.text("model", body["model"]) if "model" in body else None,
        checks.text("user", body.get("user", ""))[:ID_LENGTH],
        checks.truth("stream_options.include_usage", stream_options.get("include_usage", False)),
    )


def _options(body: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `Model.chat`."""
    options = {name: check(name, body[name]) for name, check in _OPTIONS.items() if name in body}
    for name in ("max_tokens", "max_completion_tokens"):  # the newer one wins
        if name in body:
            options["max_tokens"] = _TOKENS(name, body[name])
    if "seed" in body:
        options["seed"] = checks.whole(-(2**63), 2**63 - 1)("seed", body["seed"]) % 2**63
    if "stop" in body:
        stops = [body["stop"]] if isinstance(body["stop"], str) else checks.items("stop", body["stop"], MOST_STOPS)
        options["stop"] = [_not_empty("stop", stop) for stop in stops]
    if bias := checks.mapping("logit_bias", body.get("logit_bias", {})):
        options["logit_bias"] = _bias(bias)
    if _thinks(body):
        options["think"] = True
    if (schema := _schema(body)) is not None:
        options["schema"] = schema
    if checks.truth("logprobs", body.get("logprobs", False)):
        most = checks.whole(0, MOST_ALTERNATIVES)("top_logprobs", body.get("top_logprobs", 0))
        options |= {"logprobs": True, "top_logprobs": most}
    elif "top_logprobs" in body:
        raise bad("top_logprobs", "only together with logprobs")
    return options | _tools(body)


def _bias(given: dict[str, Any]) -> dict[int, float]:
    """Token ids are JSON's keys, and so texts."""
    if len(given) > MOST_BIASES or not all(token.isdecimal() and token.isascii() for token in given):
        raise bad("logit_bias", f"must map at most {MOST_BIASES} token ids to numbers")
    check = checks.number(-100, 100)
    return {int(token): check(f"logit_bias.{token}", value) for token, value in given.items()}


def _thinks(body: dict[str, Any]) -> bool:
    """Whether the model is to think first, as OpenAI or as llama.cpp and vLLM say it."""
    extra = checks.mapping("chat_template_kwargs", body.get("chat_template_kwargs", {}))
    effort = checks.member(*EFFORTS)("reasoning_effort", body.get("reasoning_effort", "none"))
    named = "chat_template_kwargs.enable_thinking"
    return checks.truth(named, extra.get("enable_thinking", effort not in {"none", "minimal"}))


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    form = checks.mapping("response_format", body.get("response_format", {"type": "text"}))
    kind = checks.member("text", "json_object", "json_schema")("response_format.type", form.get("type"))
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    holder = checks.mapping("response_format.json_schema", form.get("json_schema"))
    return checks.mapping("response_format.json_schema.schema", holder.get("schema"))


def _tools(body: dict[str, Any]) -> dict[str, Any]:
    tools = checks.items("tools", body.get("tools", []), MOST_TOOLS)
    names = [_tool_name(f"tools[{index}]", tool) for index, tool in enumerate(tools)]
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, dict):
        checks.member("function")("tool_choice.type", choice.get("type"))
        function = checks.mapping("tool_choice.function", choice.get("function"))
        choice = checks.member(*names)("tool_choice.function.name", function.get("name"))
        return {"tools": tools, "tool_choice": {"name": choice}}
    checks.member("none", "auto", "required")("tool_choice", choice)
    if choice == "required" and not tools:
        raise bad("tool_choice", "there are no tools")
    if not tools or choice == "none":
        return {}
    return {"tools": tools} if choice == "auto" else {"tools": tools, "tool_choice": choice}


def _tool_name(param: str, value: Any) -> str:
    tool = checks.mapping(param, value)
    checks.member("function")(f"{param}.type", tool.get("type"))
    function = checks.mapping(f"{param}.function", tool.get("function"))
    name = checks.text(f"{param}.function.name", function.get("name"))
    if not TOOL_NAME.fullmatch(name):
        raise bad(f"{param}.function.name", "at most 64 letters, digits, - and _")
    checks.text(f"{param}.function.description", function.get("description") or "")
    checks.mapping(f"{param}.function.parameters", function.get("parameters") or {})
    return name


def _not_empty(param: str, value: Any) -> str:
    if not checks.text(param, value):
        raise bad(param, "must not be empty")
    return str(value)
