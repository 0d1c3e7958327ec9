"""The API's own description, OpenAPI 3.1: what is taken and given, no more than that."""

from __future__ import annotations

from functools import cache
from typing import Any

from edge_runtime.daemon.http import chat, messages, transcriptions
from edge_runtime.daemon.languages import ENGLISH_NAMES

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TRUTH: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
ANYTHING: Schema = {"type": "object"}


def _object(required: list[str] | None = None, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required or []}


def _list(items: Schema, most: int, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _number(low: float, high: float, kind: str = "number") -> Schema:
    return {"type": kind, "minimum": low, "maximum": high}


def _text_part(kind: str) -> Schema:
    return _object(["type", kind], type={"const": kind}, **{kind: TEXT})


_PRIORITY = _number(-1000, 1000, "integer") | {"description": "Higher runs sooner."}
_DEADLINE = _number(0, 31_536_000) | {"description": "Seconds after which nobody wants the answer."}


def _image_url() -> Schema:
    uri = {"type": "string", "pattern": "^data:image/[a-zA-Z0-9_.+-]+;base64,[A-Za-z0-9+/]+={0,2}$"}
    return _object(["type", "image_url"], type={"const": "image_url"}, image_url=_object(["url"], url=uri))


def _input_audio() -> Schema:
    audio = _object(["data"], data=TEXT | {"contentEncoding": "base64"}, format=TEXT)
    return _object(["type", "input_audio"], type={"const": "input_audio"}, input_audio=audio)


def _message() -> Schema:
    user_part = {"oneOf": [_text_part("text"), _image_url(), _input_audio()]}
    parts = _list(_text_part("text"), messages.MOST_PARTS, 1)
    said = {"oneOf": [_text_part("text"), _text_part("refusal")]}
    function = _object(["name", "arguments"], name=TEXT, arguments=TEXT | {"contentMediaType": "application/json"})
    call = _object(["id", "function"], id=TEXT, type={"const": "function"}, function=function)
    words = {"anyOf": [TEXT, _list(said, messages.MOST_PARTS, 1)]}
    user = {"anyOf": [TEXT, _list(user_part, messages.MOST_PARTS, 1)]}
    return {
        "oneOf": [
            _object(["role", "content"], role={"enum": ["system", "developer"]}, content=words),
            _object(["role", "content"], role={"const": "user"}, content=user),
            _object(["role", "content"], role={"const": "assistant"}, content=words),
            _object(
                ["role", "tool_calls"],
                role={"const": "assistant"},
                content={"type": "null"},
                tool_calls=_list(call, messages.MOST_CALLS, 1),
            ),
            _object(
                ["role", "content", "tool_call_id"],
                role={"const": "tool"},
                content={"anyOf": [TEXT, parts]},
                tool_call_id=TEXT,
            ),
        ]
    }


def _question() -> Schema:
    function = _object(
        ["name"],
        name={"type": "string", "pattern": f"^{chat.TOOL_NAME.pattern}$"},
        description=TEXT,
        parameters=ANYTHING | {"description": "JSON Schema."},
    )
    tool = _object(["type", "function"], type={"const": "function"}, function=function)
    named = _object(["type", "function"], type={"const": "function"}, function=_object(["name"], name=TEXT))
    stop = {"type": "string", "minLength": 1}
    schema = _object(["schema"], name=TEXT, schema=ANYTHING)
    response_format = {
        "oneOf": [
            _object(["type"], type={"enum": ["text", "json_object"]}),
            _object(["type", "json_schema"], type={"const": "json_schema"}, json_schema=schema),
        ]
    }
    optional: dict[str, Schema] = {
        "model": TEXT,
        "stream": TRUTH,
        "stream_options": _object(include_usage=TRUTH),
        "max_tokens": _number(1, 1_000_000, "integer"),
        "max_completion_tokens": _number(1, 1_000_000, "integer"),
        "temperature": _number(0, 2),
        "top_p": _number(0, 1),
        "top_k": _number(1, 1_000_000, "integer"),
        "min_p": _number(0, 1),
        "repetition_penalty": _number(0.1, 10),
        "presence_penalty": _number(-2, 2),
        "frequency_penalty": _number(-2, 2),
        "logit_bias": {
            "type": "object",
            "maxProperties": chat.MOST_BIASES,
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": _number(-100, 100),
        },
        "seed": _number(-(2**63), 2**63 - 1, "integer"),
        "stop": {"anyOf": [stop, _list(stop, chat.MOST_STOPS)]},
        "tools": _list(tool, chat.MOST_TOOLS),
        "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, named]},
        "response_format": response_format,
        "logprobs": TRUTH,
        "top_logprobs": _number(0, chat.MOST_ALTERNATIVES, "integer"),
        "reasoning_effort": {"enum": list(chat.EFFORTS)},
        "n": {"const": 1},
        "user": TEXT,
        "priority": _PRIORITY,
        "deadline_s": _DEADLINE,
    }
    return _object(
        ["messages"],
        messages=_list(_ref("Message"), messages.MOST_MESSAGES, 1),
        **{name: _or_null(schema) for name, schema in optional.items()},
    )


def _answer() -> Schema:
    call = _object(["id", "type", "function"], id=TEXT, type={"const": "function"}, function=ANYTHING)
    message = _object(
        ["role", "content"],
        role={"const": "assistant"},
        content=_or_null(TEXT),
        reasoning_content=TEXT,
        tool_calls=_list(call, messages.MOST_CALLS),
    )
    choice = _object(
        ["index", "message", "finish_reason"],
        index={"const": 0},
        message=message,
        finish_reason={"enum": ["stop", "length", "tool_calls"]},
        logprobs=_or_null(ANYTHING),
    )
    usage = _object(
        ["prompt_tokens", "completion_tokens", "total_tokens"],
        prompt_tokens=COUNT,
        completion_tokens=COUNT,
        total_tokens=COUNT,
    )
    return _object(
        ["id", "object", "created", "model", "choices", "usage"],
        id=TEXT,
        object={"const": "chat.completion"},
        created=COUNT,
        model=TEXT,
        choices=_list(choice, 1, 1),
        usage=usage,
    )


def _recording(*, translate: bool) -> Schema:
    own: dict[str, Schema] = {} if translate else {"stream": {"enum": ["true", "false"]}}
    return _object(
        ["file"],
        file={"type": "string", "format": "binary", "description": "WAV, FLAC, OGG or MP3"},
        model=TEXT,
        language={"enum": list(ENGLISH_NAMES)},
        prompt=TEXT | {"maxLength": 1000},
        temperature=_number(0, 1),
        response_format={"enum": list(transcriptions.FORMATS)},
        priority=_PRIORITY,
        deadline_s=_DEADLINE,
        **own,
    )


def _json(schema: Schema, description: str = "OK") -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _plain(*kinds: str) -> dict[str, Schema]:
    return {kind: {"schema": TEXT} for kind in kinds}


# OpenAPI 3.1 cannot say what the events of a stream are.
_STREAM: dict[str, Schema] = {"text/event-stream": {}}

_FAILURES = {
    "400": "The request is wrong",
    "401": "The bearer token is missing or wrong",
    "403": "Host or origin is not allowed",
    "404": "There is no such thing",
    "405": "There is no such method",
    "408": "The body came too slowly",
    "413": "More than is taken",
    "415": "Not a kind of data that is taken",
    "429": "Too many requests wait; Retry-After says when to come again",
    "500": "Something went wrong inside",
    "503": "The model is loading, or the daemon ends",
    "504": "The deadline has passed",
}


def _operation(name: str, summary: str, answer: Schema, **more: Any) -> Schema:
    failures = {status: _json(_ref("Error"), says) for status, says in _FAILURES.items()}
    return {"operationId": name, "summary": summary, "responses": {"200": answer, **failures}, **more}


def _public(operation: Schema) -> Schema:
    return {**operation, "security": []}


def _body(kind: str, schema: Schema) -> Schema:
    return {"required": True, "content": {kind: {"schema": schema}}}


@cache
def document(version: str) -> Schema:
    """The OpenAPI document."""
    status = _object(["status"], status=TEXT)
    model = _object(["id", "object", "created", "owned_by"], id=TEXT, object={"const": "model"}, created=COUNT)
    answer = _json(_ref("Answer"))
    answer["content"] |= _STREAM
    transcript = _json(_object(["text"], text=TEXT))
    transcript["content"] |= _plain("text/plain", "application/x-subrip", "text/vtt") | _STREAM
    by_name = {"name": "name", "in": "path", "required": True, "schema": TEXT}
    unwell = {"503": _json(status, "Not so")}
    well = _public(_operation("healthz", "Whether the daemon is well", _json(status)))
    ready = _public(_operation("readyz", "Whether it answers requests", _json(status)))
    for operation in (well, ready):
        operation["responses"] |= unwell
    metrics = {"description": "Prometheus' text form", "content": _plain("text/plain")}
    chatting = _operation("chat", "Answers a conversation", answer)
    listening = _operation("transcribe", "Writes down what was said", transcript)
    translating = _operation("translate", "Writes down in English what was said", transcript)
    chatting["requestBody"] = _body("application/json", _ref("Question"))
    listening["requestBody"] = _body("multipart/form-data", _recording(translate=False))
    translating["requestBody"] = _body("multipart/form-data", _recording(translate=True))
    this = {"description": "OpenAPI", "content": {"application/json": {"schema": ANYTHING}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "edge-runtime", "version": version},
        "paths": {
            "/healthz": {"get": well},
            "/readyz": {"get": ready},
            "/metrics": {"get": _operation("metrics", "Counters and gauges", metrics)},
            "/openapi.json": {"get": _public(_operation("openapi", "This document", this))},
            "/v1/models": {
                "get": _operation("models", "Lists the models", _json(_object(["data"], data=_list(model, 1000))))
            },
            "/v1/models/{name}": {"get": _operation("model", "One model", _json(model), parameters=[by_name])},
            "/v1/chat/completions": {"post": chatting},
            "/v1/audio/transcriptions": {"post": listening},
            "/v1/audio/translations": {"post": translating},
        },
        "components": {
            "schemas": {
                "Message": _message(),
                "Question": _question(),
                "Answer": _answer(),
                "Error": _object(
                    ["error"],
                    error=_object(
                        ["message", "type", "param", "code"],
                        message=TEXT,
                        type=TEXT,
                        param=_or_null(TEXT),
                        code=_or_null(TEXT),
                    ),
                ),
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}, {}],
    }
