"""A Hugging Face hub on loopback: models in memory, and a storage on another host name for their large files.

It answers as the real one does where huggingface_hub looks: listings, commits, ETags, redirects to the storage, Range,
error codes. It can refuse, and break a transfer off in the middle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGE = (".safetensors", ".gguf", "tokenizer.json")


def commit_of(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for name, data in sorted(files.items()):
        digest.update(name.encode() + data)
    return digest.hexdigest()


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0
    """Bytes of the answer's body."""

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Hub:
    """What there is, what goes wrong, and what was asked.

    Attributes:
        cuts: Bytes after which the transfer of a file's content breaks off, for each of its transfers in turn; None
            sends it whole, and so does an empty list.
        stall: Names whose transfer stops after the bytes of its cut and holds the line.
    """

    endpoint: str = ""
    storage: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str | None = None
    broken: int | None = None
    """A status that answers everything."""
    cuts: dict[str, list[int | None]] = field(default_factory=dict)
    stall: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    ranges: bool = True
    requests: list[Request] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def add(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Puts files on a branch; the result is the commit."""
        commit = commit_of(files)
        self.commits.setdefault(repo, {})[commit] = files
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def add_folder(self, repo: str, folder: Path, **more: bytes) -> str:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return self.add(repo, files | {name.replace("__", "."): data for name, data in more.items()})

    def transfers(self, name: str) -> list[Request]:
        """The requests that brought content of a file."""
        return [r for r in self.requests if r.method == "GET" and r.path.rpartition("/")[2] == name and r.sent]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        self.request_seen = Request(self.command, path, {k.lower(): v for k, v in self.headers.items()})
        hub.requests.append(self.request_seen)
        parts = path.strip("/").split("/")
        if hub.broken:
            self.reply(hub.broken, {}, b"out of order")
        elif parts[:2] == ["api", "models"] and len(parts) == 6 and parts[4] == "revision":
            self.listing("/".join(parts[2:4]), parts[5])
        elif parts[0] == "storage":
            self.content(hub.commits["/".join(parts[1:3])][parts[3]]["/".join(parts[4:])], parts[-1], {})
        elif len(parts) > 4 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.reply(404, {}, b"")

    def find(self, repo: str, revision: str) -> str | None:
        """The commit; None after an error was sent."""
        hub = self.server.hub
        if repo not in hub.commits:
            self.reply(401, {"X-Error-Code": "RepoNotFound"}, b"")
            return None
        commit = hub.branches[repo].get(revision, revision)
        if commit not in hub.commits[repo]:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return None
        return commit

    def listing(self, repo: str, revision: str) -> None:
        if (commit := self.find(repo, revision)) is None:
            return
        siblings: list[dict[str, Any]] = []
        for name, data in self.server.hub.commits[repo][commit].items():
            sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": sha1}
            if name.endswith(LARGE):
                entry["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}).encode()
        self.reply(200, {"Content-Type": "application/json"}, body)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        hub = self.server.hub
        if (commit := self.find(repo, revision)) is None:
            return
        if repo in hub.gated and self.headers.get("authorization") != f"Bearer {hub.token}":
            self.reply(403, {"X-Error-Code": "GatedRepo"}, b"")
            return
        data = hub.commits[repo][commit].get(name)
        if data is None:
            self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"")
        elif name.endswith(LARGE):
            head = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{hub.storage}/storage/{repo}/{commit}/{name}",
            }
            self.reply(302, head, b"")
        else:
            sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            self.content(data, name, {"X-Repo-Commit": commit, "ETag": f'"{sha1}"'})

    def content(self, data: bytes, name: str, head: dict[str, str]) -> None:
        hub = self.server.hub
        asked = self.request_seen.range if hub.ranges else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        status = 206 if start else 200
        if start:
            head = {**head, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        body = data[start:]
        if name in hub.damaged:
            body = bytes(len(body))
        cuts = hub.cuts.get(name, []) if self.command == "GET" else []
        self.reply(status, {**head, "Accept-Ranges": "bytes"}, body, cuts.pop(0) if cuts else None, name in hub.stall)

    def reply(
        self, status: int, head: dict[str, str], body: bytes, cut: int | None = None, stall: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {**head, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body if cut is None else body[:cut]
        with contextlib.suppress(OSError):
            self.wfile.write(sent)
            self.wfile.flush()
        self.request_seen.sent = len(sent)
        if cut is not None:
            if stall:
                self.server.hub.stalled.set()
                self.server.hub.closing.wait(30)
            self.close_connection = True


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A hub that runs until the end of the block."""
    hub = Hub()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.hub = hub
        port = server.server_address[1]
        hub.endpoint, hub.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()
