"""Who may come in and with how much: hosts, origins, tokens, sizes and times, before anything looks at a request."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.websockets import WebSocket

from edge_runtime.daemon.http.problems import SERVER, Problem
from edge_runtime.daemon.worker import FAILED
from edge_runtime.kiosk.pages import PUBLIC_PAGES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edge_runtime.daemon.http.app import Site
    from edge_runtime.settings import HttpSettings

log = logging.getLogger(__name__)

# What anybody may see who reaches the port: whether the box is well, how it is spoken to, and pages without content.
PUBLIC = frozenset({"/healthz", "/readyz", "/openapi.json"}) | PUBLIC_PAGES
# A browser cannot set headers for a WebSocket: it says the token as a subprotocol of this prefix.
BEARER_SUBPROTOCOL = "bearer."
# Room for what stands around a file in a form.
ENVELOPE_BYTES = 2**16
# Bodies that may be in memory at a time, in bodies of the largest size.
BODIES = 4


class Budget:
    """Memory that bodies may take together. For one thread."""

    def __init__(self, total: int) -> None:
        self._left = total

    def take(self, count: int) -> None:
        """Takes `count` bytes.

        Raises:
            Problem: There are not so many left.
        """
        if count > self._left:
            headers = {"Retry-After": "1"}
            raise Problem(503, "too many bytes are being sent at once", kind=SERVER, code="busy", headers=headers)
        self._left -= count

    def give(self, count: int) -> None:
        """Gives them back."""
        self._left += count


class Guard:
    """The outermost part of the application."""

    def __init__(
        self,
        app: ASGIApp,
        settings: HttpSettings,
        token: str | None,
        body_bytes: int,
        site: Site,
    ) -> None:
        """Guards `app`.

        Args:
            app: What is guarded.
            settings: Whom to let in.
            token: What every client must show; None: nothing.
            body_bytes: Largest body.
            site: Hears the status of every answer.
        """
        self._site = site
        self._app, self._settings, self._body_bytes = app, settings, body_bytes + ENVELOPE_BYTES
        self._token = None if token is None else token.encode()
        self._budget = Budget(BODIES * self._body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request or WebSocket."""
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                self._site.answered(message["status"])
                self._add_headers(MutableHeaders(scope=message), Headers(scope=scope))
            await send(message)

        body = _Body(scope, receive, self._body_bytes, self._settings.body_s, self._budget)
        try:
            response = self._checked(scope)
            await (response or self._app)(scope, body.receive, sending)
        except Problem as problem:
            if started:
                raise
            await self._refuse(problem, scope, receive, sending)
        except Exception:
            log.exception("%s failed", scope["path"])
            if not started:
                await self._refuse(Problem(500, FAILED, kind=SERVER, code="internal"), scope, receive, sending)
        finally:
            self._budget.give(body.taken)

    def _checked(self, scope: Scope) -> Response | None:
        """The answer to a browser's question whether it may ask; None: let it in.

        Raises:
            Problem: Not this one.
        """
        headers = Headers(scope=scope)
        if self._token is None and not self._known_host(headers.get("host", "")):
            raise Problem(403, "this name is not one of the server's (see http.hosts)", code="unknown_host")
        origin = headers.get("origin")
        if origin is not None:
            if not self._allows(origin) and urlsplit(origin).netloc != headers.get("host"):
                raise Problem(403, "pages of other servers may not ask (see http.cors_origins)", code="foreign_origin")
            if scope["type"] == "http" and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                return _preflight(headers)
        if self._token is not None and scope["path"] not in PUBLIC:
            self._check_token(scope, headers, self._token)
        return None

    def _known_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name == "localhost" or is_loopback(name) or name in self._settings.hosts

    def _allows(self, origin: str) -> bool:
        return origin in self._settings.cors_origins or "*" in self._settings.cors_origins

    @staticmethod
    def _check_token(scope: Scope, headers: Headers, token: bytes) -> None:
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            shown = ""
        if scope["type"] == "websocket" and not shown:
            said = [name for name in scope["subprotocols"] if name.startswith(BEARER_SUBPROTOCOL)]
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
            shown = said[0].removeprefix(BEARER_SUBPROTOCOL) if said else "".join(asked[:1])
        if not hmac.compare_digest(shown.strip().encode(), token):
            raise Problem(
                401,
                "a valid bearer token is needed",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _add_headers(self, answer: MutableHeaders, asked: Headers) -> None:
        answer.setdefault("X-Content-Type-Options", "nosniff")
        answer.setdefault("Cache-Control", "no-store")
        origin = asked.get("origin")
        if origin is not None and self._allows(origin):
            answer["Access-Control-Allow-Origin"] = origin
            answer["Access-Control-Expose-Headers"] = "Retry-After"
            answer.add_vary_header("Origin")

    @staticmethod
    async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(problem.response())
        else:
            await problem.response()(scope, receive, send)


class _Body:
    """The body of a request, while it comes: not too much, not too slowly."""

    def __init__(self, scope: Scope, receive: Receive, limit: int, patience_s: float, budget: Budget) -> None:
        self.taken = 0
        self._receive, self._limit, self._budget = receive, limit, budget
        self._due = asyncio.get_running_loop().time() + patience_s
        self._over = scope["type"] != "http"
        length = Headers(scope=scope).get("content-length", "")
        self._announced = int(length) if length.isdecimal() else 0

    async def receive(self) -> Message:
        """The next piece, or the news that the client is gone."""
        if self._over:
            return await self._receive()
        if self._announced > self._limit:
            self._too_large()
        try:
            async with asyncio.timeout_at(self._due):
                message = await self._receive()
        except TimeoutError:
            raise Problem(408, "the body came too slowly (see http.body_s)", code="timeout") from None
        self._over = message["type"] != "http.request" or not message.get("more_body", False)
        size = len(message.get("body", b""))
        if self.taken + size > self._limit:
            self._too_large()
        self._budget.take(size)
        self.taken += size
        return message

    def _too_large(self) -> None:
        raise Problem(413, f"the body is too large: at most {self._limit:,} bytes are taken", code="too_large")


def is_loopback(name: str) -> bool:
    """Whether `name` is the address of this machine for itself."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _preflight(asked: Headers) -> Response:
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": asked.get("access-control-request-headers", ""),
        "Access-Control-Max-Age": "600",
    }
    return Response(status_code=204, headers=allowed)
