"""A model on another box, over HTTP: a llama-server there, or another edge-runtime."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Any

from edge_runtime.engine.llama.chat import Abilities
from edge_runtime.engine.llama.client import ServerLost, ask
from edge_runtime.engine.llama.engine import LlamaEngine
from edge_runtime.engine.llama.load import AUDIO_S
from edge_runtime.engine.llama.server import Address
from edge_runtime.engine.protocol import Info
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings_file import secret

if TYPE_CHECKING:
    import threading
    from pathlib import Path

_TOKENS = ("<|turn>", "<turn|>", "<|image|>", "<|audio|>", "<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>")
"""Gemma 4's, which a server elsewhere does not name to us."""


class Elsewhere:
    """A server that is not ours: it is neither started nor ended."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def address(self, _cancel: threading.Event | None = None) -> Address:
        """Where it is."""
        return self._address

    def broken(self, address: Address, why: str) -> None:
        """Nothing that we could do."""

    def worked(self) -> None:
        """Nothing to remember."""

    def close(self) -> None:
        """Nothing to end."""


def open_remote(url: str, token_file: Path | None = None) -> LlamaEngine:
    """An engine for the server at `url`, such as `http://big-box:8080`.

    Args:
        url: Of the server.
        token_file: File whose first line is the bearer token; a bare name is one of systemd's credentials.

    Raises:
        EdgeRuntimeError: It is no address, the token cannot be read, or nothing answers there.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise EdgeRuntimeError(f"{url} is no address of a server, such as http://big-box:8080")
    tls = parts.scheme == "https"
    key = secret("route.token_file", token_file).strip() if token_file else None
    try:
        port = parts.port or (443 if tls else 80)
    except ValueError as error:
        raise EdgeRuntimeError(f"{url}: {error}") from None
    address = Address(parts.hostname, port, key, tls=tls, prefix=parts.path.rstrip("/"))
    try:
        listed = ask(address, "/v1/models")
        name, context, heard = _described(address, listed["data"][0])
    except ServerLost as lost:
        raise EdgeRuntimeError(f"{url} {lost}", "internal") from None
    except (KeyError, IndexError, TypeError, ValueError):
        raise EdgeRuntimeError(f"{url} speaks neither llama-server's language nor ours", "internal") from None
    abilities = Abilities(image="image" in heard, audio_s=AUDIO_S if "audio" in heard else 0.0)
    info = Info(name=name, modalities=heard, context=context)
    return LlamaEngine(Elsewhere(address), info, abilities, control_tokens=_TOKENS)


def _described(address: Address, listed: dict[str, Any]) -> tuple[str, int, list[str]]:
    """Name, context and modalities of the server's first model."""
    if "modalities" in listed:  # another edge-runtime
        return str(listed["id"]), int(listed["context"]), [str(kind) for kind in listed["modalities"]]
    try:
        properties = ask(address, "/props")
    except EdgeRuntimeError:
        properties = {}
    given = properties.get("modalities") or {}
    heard = [kind for kind, key in (("image", "vision"), ("audio", "audio")) if given.get(key)]
    context = (properties.get("default_generation_settings") or {}).get("n_ctx") or 4096
    return str(listed["id"]).rsplit("/", 1)[-1], int(context), ["text", *heard]
