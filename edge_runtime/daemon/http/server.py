"""The server's thread: listens before the model is loaded, ends within the daemon's own time."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

from uvicorn.server import Server as UvicornServer

from edge_runtime.daemon.http.app import Application, Site
from edge_runtime.daemon.http.connection import Connection, Room, RoomConfig, WebSocketConnection
from edge_runtime.daemon.http.guard import Guard, is_loopback
from edge_runtime.daemon.loop import LoopThread
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings_file import secret

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.daemon.http.jobs import Backend
    from edge_runtime.settings import Settings

log = logging.getLogger(__name__)

DEFAULT_ADDRESS = ("127.0.0.1", 8080)
LEAST_TOKEN = 16
BACKLOG = 1024
# How long whoever is being answered at the end may have to take it.
FAREWELL_S = 0.5


class Server(LoopThread):
    """The HTTP server of one daemon.

    Example:
        server = Server.of(settings, version="1.0")
        server.start()
        server.prepare(Backend(...))
        server.open()
        ...
        server.stop()
        server.join(2)

    Attributes:
        site: What it shows, to be filled.
        address: Host and port where it listens.
    """

    def __init__(self, settings: Settings, version: str, address: tuple[str, int]) -> None:
        """Binds the address.

        Raises:
            EdgeRuntimeError: The address cannot be had, the token or the certificate not be read, or a token is needed.
        """
        super().__init__("http")
        http = settings.http
        token = None if http.token_file is None else read_token(http.token_file)
        if token is None and not is_loopback(address[0]):
            raise EdgeRuntimeError(f"http.token_file is needed: {address[0]} can be reached from other machines")
        self.site = Site(version)
        self._socket = bind(address, "http.listen")
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        app = Guard(Application(self.site, settings), http, token, settings.limits.payload_bytes, self.site)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what clients do wrong is no news
        self._backend: Backend | None = None
        self._connections: set[Any] = set()
        self._config = RoomConfig(
            app,
            Room(http),
            http=Connection,
            ws=WebSocketConnection,
            ws_max_size=settings.limits.payload_bytes,
            ws_per_message_deflate=False,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=http.header_s,
            ssl_certfile=http.tls_cert,
            ssl_keyfile=http.tls_key,
        )
        try:
            self._config.load()
        except OSError as error:  # ssl.SSLError is one
            self._socket.close()
            raise EdgeRuntimeError(f"http.tls_cert {http.tls_cert}: {error.strerror or error}") from None

    @classmethod
    def of(cls, settings: Settings, version: str) -> Server | None:
        """The server that the settings ask for; None: they want none, or the default address is somebody else's.

        Raises:
            EdgeRuntimeError: As the constructor.
        """
        if settings.http.listen == "off":
            return None
        if settings.http.listen is not None:
            return cls(settings, version, parse_address(settings.http.listen, "http.listen"))
        try:
            return cls(settings, version, DEFAULT_ADDRESS)
        except _TakenError as error:
            log.warning("no HTTP: %s", error)
            return None

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._connections)

    def prepare(self, backend: Backend) -> None:
        """The model is there, and answers once the daemon runs."""
        self._backend = backend

    def open(self) -> None:
        """Answers from now on, having listened since before the model was there."""
        self.site.backend = self._backend
        log.info("serving %s://%s:%d", "https" if self._config.is_ssl else "http", *self.address)

    async def _serve(self) -> None:
        """Takes no more at the end, lets answers that are ready be taken for a moment, hangs up."""
        server = UvicornServer(self._config)
        state = server.server_state
        self._connections = state.connections
        # The parts of uvicorn's own `serve`, without its clock that ticks ten times a second.
        server.lifespan = self._config.lifespan_class(self._config)
        await server.startup(sockets=[self._socket])
        self._up.set()
        await self._stop.wait()
        for listening in server.servers:
            listening.close()
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=FAREWELL_S)
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        for connection in list(state.connections):
            connection.transport.abort()
        self._socket.close()


class _TakenError(EdgeRuntimeError):
    """Somebody else listens there."""


def parse_address(text: str, key: str) -> tuple[str, int]:
    """`host:port`, the host of an IPv6 address in brackets.

    Raises:
        EdgeRuntimeError: It is none; the message names `key`.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise EdgeRuntimeError(f"{key} must be host:port, such as 127.0.0.1:8080, not {text!r}")
    return host, int(port)


def bind(address: tuple[str, int], key: str) -> socket.socket:
    """A listening socket.

    Raises:
        EdgeRuntimeError: There is no such address, or somebody else has it; the message names `key`.
    """
    host, port = address
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise EdgeRuntimeError(f"{key}: {host}: {error.strerror}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(where)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise _TakenError(f"{key}: {host}:{port}: {error.strerror}") from None
    return listening


def read_token(file: Path) -> str:
    """The first line of a file; a bare name is one of systemd's credentials.

    Raises:
        EdgeRuntimeError: It cannot be read, or is too short to be a secret.
    """
    token = secret("http.token_file", file).strip()
    if len(token) < LEAST_TOKEN or not token.isascii():
        raise EdgeRuntimeError(f"http.token_file {file}: a token has at least {LEAST_TOKEN} ASCII characters")
    return token
