"""What is to be found where."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, Router, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from edge_runtime.daemon.http import completions, openapi, transcriptions
from edge_runtime.daemon.http.listen import Talk
from edge_runtime.daemon.http.problems import LOADING_RETRY_S, Problem, loading, of_code
from edge_runtime.kiosk.pages import Pages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send
    from starlette.websockets import WebSocket

    from edge_runtime.daemon.http.jobs import Backend
    from edge_runtime.settings import Settings

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Site:
    """What the server shows; filled while the daemon starts.

    Attributes:
        version: Of the program.
        backend: The model and its queue; None while they are not there.
        trouble: What is wrong with the daemon, in a few words; None: nothing.
        metrics: The metrics in Prometheus' text form.
        status: What the owner's page shows; None: the daemon is not there yet.
        answered: Hears the status of every answer.
        talks: Spoken conversations that go on.
    """

    version: str
    backend: Backend | None = None
    trouble: Callable[[], str | None] = lambda: None
    metrics: Callable[[], str] = lambda: ""
    status: Callable[[], dict[str, Any] | None] = lambda: None
    answered: Callable[[int], None] = lambda _: None
    talks: int = 0


class Application:
    """The routes, behind the guard."""

    def __init__(self, site: Site, settings: Settings) -> None:
        """Args: what is shown; what the page for visitors is like.

        Raises:
            EdgeRuntimeError: It could not be read, or its language is not there.
        """
        self._site = site
        self._router = Router(
            [
                Route("/healthz", self._health),
                Route("/readyz", self._ready),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._openapi),
                Route("/v1/models", self._needing_model(_models)),
                Route("/v1/models/{name:path}", self._needing_model(_model)),
                Route("/v1/chat/completions", self._needing_model(completions.complete), methods=["POST"]),
                Route("/v1/audio/transcriptions", self._needing_model(transcriptions.transcribe), methods=["POST"]),
                Route("/v1/audio/translations", self._needing_model(transcriptions.translate), methods=["POST"]),
                WebSocketRoute("/v1/listen", self._listen),
                *Pages(settings.kiosk, settings.speech, self._status).routes(),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request or WebSocket."""
        scope["app"] = self  # what makes the router raise instead of answering in its own way
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            says = f"{scope.get('method', 'WebSocket')} {scope['path'][:200]}: {error.detail}"
            code = "not_found" if error.status_code == 404 else None
            raise Problem(error.status_code, says, code=code, headers=error.headers) from None

    async def _listen(self, websocket: WebSocket) -> None:
        if self._site.backend is None:
            raise loading()
        if self._site.talks >= self._site.backend.settings.http.voices:
            raise of_code("busy", "too many people are talking (see http.voices)", LOADING_RETRY_S)
        self._site.talks += 1
        try:
            with contextlib.suppress(WebSocketDisconnect):
                await Talk(websocket, self._site.backend).run()
        finally:
            self._site.talks -= 1

    def _needing_model(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            if self._site.backend is None:
                raise loading()
            request.state.backend = self._site.backend
            return await endpoint(request)

        return guarded

    async def _health(self, _: Request) -> Response:
        trouble = self._site.trouble()
        return JSONResponse({"status": trouble or "ok"}, 503 if trouble else 200)

    async def _ready(self, _: Request) -> Response:
        trouble = "loading" if self._site.backend is None else self._site.trouble()
        return JSONResponse({"status": trouble or "ready"}, 503 if trouble else 200)

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse(self._site.metrics(), media_type=METRICS_TYPE)

    def _status(self) -> dict[str, Any] | None:
        return self._site.status()

    async def _openapi(self, _: Request) -> Response:
        return JSONResponse(openapi.document(self._site.version))


async def _models(request: Request) -> Response:
    backend: Backend = request.state.backend
    return JSONResponse({"object": "list", "data": [_described(backend, name) for name in backend.names]})


async def _model(request: Request) -> Response:
    backend: Backend = request.state.backend
    completions.check_model(backend, request.path_params["name"])
    return JSONResponse(_described(backend, request.path_params["name"]))


def _described(backend: Backend, name: str) -> dict[str, Any]:
    """OpenAI's fields, and what a client may want to know before it asks."""
    return {
        "id": name,
        "object": "model",
        "created": backend.created,
        "owned_by": "edge-runtime",
        "modalities": list(backend.info["modalities"]),
        "context": backend.info["context"],
    }
