"""Serves the pages: the visitors' at `/`, the owner's at `/status`. Their files lie in `static/`, as they are."""

from __future__ import annotations

import asyncio
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_runtime.daemon.http.problems import bad, of_code
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.kiosk.colours import theme
from edge_runtime.kiosk.voice import KioskVoice

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from edge_runtime.settings import KioskSettings
    from edge_runtime.settings_senses import SpeechSettings

STATIC = Path(__file__).with_name("static")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
FILES = {f"/kiosk/{path.name}": path for path in sorted(STATIC.iterdir()) if path.suffix in TYPES}
PUBLIC_PAGES = frozenset({"/", "/status", "/kiosk/theme.css", "/kiosk/config.json", *FILES})
"""What a browser gets before it can show a token. Nothing of it says what the box knows or does."""
BUILT_IN = ("en", "de", "fr", "es", "zh")
"""Languages of `static/strings.js`."""
SENTENCE = 1000
"""Characters that are spoken at a time."""
# Nothing from elsewhere, no script in the page, no framing; the page may use its own screen's microphone and camera.
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Permissions-Policy": "microphone=(self), camera=(self), geolocation=(), usb=(), payment=()",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Pages:
    """The pages of one server."""

    def __init__(
        self, settings: KioskSettings, speech: SpeechSettings, status: Callable[[], dict[str, Any] | None]
    ) -> None:
        """Checks the settings.

        Args:
            settings: What the visitors' page is like.
            speech: The box's voice.
            status: What the owner's page shows; None: the daemon is not there yet.

        Raises:
            EdgeRuntimeError: A colour is none or could not be read; a language has no strings.
        """
        _check(settings)
        self._settings, self._status = settings, status
        self._voice = KioskVoice(speech)
        self._theme = theme(settings)

    def routes(self) -> list[Route]:
        """All of them."""
        found = [
            Route("/status", _file(STATIC / "status.html")),
            Route("/kiosk/status.json", self._status_json),
            Route("/kiosk/theme.css", self._theme_css),
            *(Route(path, _file(file)) for path, file in FILES.items()),
        ]
        if self._settings.enabled:
            found += [
                Route("/", _file(STATIC / "kiosk.html")),
                Route("/kiosk/config.json", self._config),
                Route("/kiosk/speech", self._speech, methods=["POST"]),
            ]
        return found

    async def _theme_css(self, _: Request) -> Response:
        return Response(self._theme, media_type=TYPES[".css"], headers=SECURITY)

    async def _config(self, _: Request) -> Response:
        return JSONResponse(self._described(), headers=SECURITY)

    def _described(self) -> dict[str, Any]:
        kiosk = self._settings
        shown = ("title", "greeting", "suggestions", "language", "languages", "strings", "microphone", "camera")
        body: dict[str, Any] = {
            name: getattr(kiosk, name) for name in (*shown, "hands_free", "speak", "screen_keys", "idle_s")
        }
        body |= {"system": kiosk.system, "max_tokens": kiosk.max_tokens, "voice": kiosk.speak and self._voice.there}
        # What a page that was open during an update sees that it is not the newest by.
        body["build"] = hashlib.sha256(f"{_digest()} {self._theme} {json.dumps(body)}".encode()).hexdigest()[:16]
        return body

    async def _speech(self, request: Request) -> Response:
        try:
            body = json.loads(await request.body())
            text, language = body["text"], body["language"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise bad("text", "give text and language, in a JSON object") from None
        if not isinstance(text, str) or not 0 < len(text.strip()) <= SENTENCE:
            raise bad("text", f"must have 1 to {SENTENCE} characters")
        if language not in self._settings.languages:
            raise bad("language", "must be one of kiosk.languages")
        try:
            wav = await asyncio.to_thread(self._voice.wav, text, language)
        except EdgeRuntimeError as error:
            raise of_code("internal", str(error)) from None
        return Response(wav, media_type="audio/wav", headers=SECURITY)

    async def _status_json(self, _: Request) -> Response:
        found = await asyncio.to_thread(self._status)
        return JSONResponse(found or {"trouble": "loading"}, headers=SECURITY)


def _check(settings: KioskSettings) -> None:
    if settings.language not in settings.languages:
        raise EdgeRuntimeError(f"kiosk.language {settings.language!r} is not among kiosk.languages")
    for language in settings.languages:
        if language not in BUILT_IN and language not in settings.strings:
            raise EdgeRuntimeError(
                f"kiosk.languages: the page does not know {language!r}: write [kiosk.strings.{language}] for it"
            )
    for language, strings in settings.strings.items():
        if not isinstance(strings, dict):
            raise EdgeRuntimeError(f"kiosk.strings.{language} must be a table: [kiosk.strings.{language}]")


def _file(path: Path) -> Callable[[Request], Any]:
    async def answer(_: Request) -> Response:
        return Response(_content(path), media_type=TYPES[path.suffix], headers=SECURITY)

    return answer


@cache
def _content(path: Path) -> bytes:
    return path.read_bytes()


@cache
def _digest() -> str:
    return hashlib.sha256(b"".join(_content(path) for path in FILES.values())).hexdigest()
