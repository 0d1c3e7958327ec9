"""`/v1/audio/transcriptions` and `/v1/audio/translations`: a recording in, its words out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse, PlainTextResponse

from edge_runtime.daemon.http import checks, streams, subtitles
from edge_runtime.daemon.http.completions import check_model, client_of
from edge_runtime.daemon.http.jobs import Backend, Job
from edge_runtime.daemon.http.problems import Problem, bad, of_code
from edge_runtime.daemon.languages import ENGLISH_NAMES, code_of
from edge_runtime.daemon.limits import check_audio
from edge_runtime.daemon.requests import Request as Asked
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
MOST_FIELDS = 32
FIELD_BYTES = 2**14


class _InMemory(MultiPartParser):
    """Keeps files off the disk: the size of the body is limited before."""

    spool_max_size = 2**40


@dataclass(frozen=True, slots=True)
class _Form:
    """What was asked for.

    Attributes:
        request: The request.
        form: How the answer is given.
        language: Code of the language of its text.
        task: As OpenAI calls it.
    """

    request: Asked
    form: str
    language: str
    task: str


async def transcribe(request: Request) -> Response:
    """What was said."""
    return await _answer(request, translate=False)


async def translate(request: Request) -> Response:
    """What was said, in English."""
    return await _answer(request, translate=True)


async def _answer(request: Request, *, translate: bool) -> Response:
    backend: Backend = request.state.backend
    fields = await _fields(request)
    if "model" in fields:
        check_model(backend, checks.text("model", fields["model"]))
    form = _Form(*await _read(fields, translate=translate))
    client = client_of(request, "")
    if form.request.stream:
        return await streams.stream(request, _events(backend, form, client))
    async with Job(backend, form.request, client) as job:
        answer = await streams.while_there(request, job.whole())
    return _formed(answer, form)


async def _fields(request: Request) -> FormData:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Problem(415, "the body must be multipart/form-data", code="unsupported_media")
    parser = _InMemory(
        request.headers, request.stream(), max_files=1, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise Problem(400, f"the form cannot be read: {error.message}", code="bad_request") from None


async def _read(fields: FormData, *, translate: bool) -> tuple[Asked, str, str, str]:
    file = fields.get("file")
    if not isinstance(file, UploadFile):
        raise bad("file", "must be a recording: WAV, FLAC, OGG or MP3")
    data = await file.read()
    await file.close()
    try:
        check_audio(data, "file")
    except EdgeRuntimeError as error:
        raise of_code(error.code, str(error)) from None
    form = checks.member(*FORMATS)("response_format", fields.get("response_format", "json"))
    stream = not translate and _truth("stream", fields.get("stream", "false"))
    if stream and form not in {"json", "text"}:
        raise bad("stream", "only with the response_format json or text")
    for granularity in fields.getlist("timestamp_granularities[]"):
        checks.member("segment")("timestamp_granularities[]", granularity)
    language = "en"
    if said := fields.get("language"):
        try:
            language = code_of(checks.text("language", said))
        except EdgeRuntimeError as error:
            raise bad("language", str(error)) from None
    options: dict[str, Any] = {"language": ENGLISH_NAMES[language]}
    if prompt := fields.get("prompt"):
        options["hint"] = checks.text("prompt", prompt)
    if temperature := fields.get("temperature"):
        options["temperature"] = checks.number(0, 1)("temperature", _number("temperature", temperature))
    if translate:
        options["translate_to"] = "English"
    priority = checks.whole(-1000, 1000)("priority", _number("priority", fields.get("priority", "0")))
    deadline = fields.get("deadline_s")
    asked = Asked(
        "transcribe",
        audio=data,
        options=options,
        stream=stream,
        priority=priority,
        deadline_s=None
        if deadline is None
        else checks.number(0, 31_536_000)("deadline_s", _number("deadline_s", deadline)),
    )
    return asked, form, "en" if translate else language, "translate" if translate else "transcribe"


async def _events(backend: Backend, form: _Form, client: str) -> AsyncIterator[str]:
    async with Job(backend, form.request, client) as job:
        async for piece in job.pieces():
            yield streams.event({"type": "transcript.text.delta", "delta": piece})
    yield streams.event({"type": "transcript.text.done", "text": job.answer["text"]})
    yield "data: [DONE]\n\n"


def _formed(answer: dict[str, Any], form: _Form) -> Response:
    text, segments = answer["text"], answer["segments"]
    if form.form == "json":
        return JSONResponse({"text": text})
    if form.form == "text":
        return PlainTextResponse(f"{text}\n")
    if form.form == "srt":
        return PlainTextResponse(subtitles.srt(segments), media_type="application/x-subrip")
    if form.form == "vtt":
        return PlainTextResponse(subtitles.vtt(segments), media_type="text/vtt")
    body = {
        "task": form.task,
        "language": ENGLISH_NAMES[form.language].lower(),
        "duration": answer["duration"],
        "text": text,
        "segments": [{"id": number, **segment} for number, segment in enumerate(segments)],
    }
    return JSONResponse(body)


def _truth(param: str, value: Any) -> bool:
    return checks.member("true", "false")(param, value.lower() if isinstance(value, str) else value) == "true"


def _number(param: str, value: Any) -> float:
    try:
        return float(checks.text(param, value))
    except ValueError:
        raise bad(param, "must be a number") from None
