"""`/v1/chat/completions`: a question in, an answer out, whole or in pieces."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from edge_runtime.daemon.http import chat, streams
from edge_runtime.daemon.http.jobs import Backend, Job
from edge_runtime.daemon.http.problems import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from edge_runtime.daemon.http.chat import Question


async def complete(request: Request) -> Response:
    """The endpoint."""
    backend: Backend = request.state.backend
    check_json(request)
    payload = await request.body()
    # Base64 of megabytes takes its time: others are not to wait for it.
    question = await asyncio.to_thread(chat.parse, payload, backend.settings, backend.info["context"])
    del payload
    check_model(backend, question.model)
    client = client_of(request, question.client)
    if question.request.stream:
        return await streams.stream(request, _events(backend, question, client))
    async with Job(backend, question.request, client) as job:
        answer = await streams.while_there(request, job.whole())
    choice = {
        "index": 0,
        "message": {"role": "assistant", "refusal": None, **_message(answer)},
        "logprobs": _logprobs(answer.get("logprobs")),
        "finish_reason": answer["finish_reason"],
    }
    head = _head(backend, "chat.completion")
    return JSONResponse(head | {"choices": [choice], "usage": _usage(answer), "timing": answer.get("timing")})


def check_json(request: Request) -> None:
    """Refuses what is not JSON by its own account: a form is what a page of another server could send unasked."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, "the body must be application/json", code="unsupported_media")


def check_model(backend: Backend, name: str | None) -> None:
    """Refuses a model that is not there."""
    if name is not None and name not in backend.names:
        says = f"the model {name[:80]!r} is not there; this box runs {backend.info['name']!r} (see http.model_names)"
        raise Problem(404, says, code="model_not_found", param="model")


def client_of(request: Request, user: str) -> str:
    """Who asks, for fairness in the queue: the address, and the name that a program gives its user."""
    host = request.client.host if request.client else ""
    return f"http {host} {user}".rstrip()


async def _events(backend: Backend, question: Question, client: str) -> AsyncIterator[str]:
    """The server-sent events of an answer, each complete."""
    head = _head(backend, "chat.completion.chunk")
    if question.usage:
        head["usage"] = None

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        return streams.event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]})

    scored, thought = 0, False
    async with Job(backend, question.request, client) as job:
        first: dict[str, Any] = {"role": "assistant"}
        async for part in job.parts():
            yield chunk({**first, **_delta(part)}, **_scores(question, part.get("logprobs")))
            first = {}
            scored += len(part.get("logprobs", ()))
            thought |= "thought" in part
    answer = job.answer
    rest = _message(answer)
    rest.pop("content")
    if thought:
        rest.pop("reasoning_content", None)
    for index, call in enumerate(rest.get("tool_calls", [])):
        call["index"] = index
    if first or rest:
        yield chunk({**first, **rest})
    yield chunk({}, answer["finish_reason"], **_scores(question, answer.get("logprobs", [])[scored:]))
    if question.usage:
        yield streams.event({**head, "choices": [], "usage": _usage(answer)})
    yield "data: [DONE]\n\n"


def _delta(part: Mapping[str, Any]) -> dict[str, Any]:
    names = {"thought": "reasoning_content", "text": "content"}
    return {name: part[given] for given, name in names.items() if part.get(given)}


def _scores(question: Question, tokens: list[dict[str, Any]] | None) -> dict[str, Any]:
    """What a piece of an answer says of its tokens, if that was asked for."""
    return {"logprobs": _logprobs(tokens or None)} if question.request.options.get("logprobs") else {}


def _head(backend: Backend, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": backend.info["name"],
    }


def _message(answer: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"content": answer["text"]}
    if thoughts := answer.get("thoughts"):
        message["reasoning_content"] = thoughts
    if note := answer.get("note"):
        message["note"] = note
    if calls := answer.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in calls]
        message["content"] = answer["text"] or None
    return message


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _usage(answer: dict[str, Any]) -> dict[str, Any]:
    usage = answer["usage"]
    read, written = usage["prompt_tokens"], usage["completion_tokens"]
    counts: dict[str, Any] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    if "cached_tokens" in usage:
        counts["prompt_tokens_details"] = {"cached_tokens": usage["cached_tokens"]}
    return counts


def _logprobs(tokens: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if tokens is None else {"content": tokens, "refusal": None}
