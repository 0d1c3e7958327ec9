"""A real server on a loopback port, with a real queue and worker; only the model is a fake."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from edge_runtime.daemon.admission import Admission
from edge_runtime.daemon.http.jobs import Backend
from edge_runtime.daemon.http.server import Server
from edge_runtime.daemon.local import LocalRequests
from edge_runtime.daemon.requests import Parser
from edge_runtime.daemon.worker import Worker
from edge_runtime.settings import HttpSettings, LimitsSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.daemon.conftest import FakeModel

LIMITS = LimitsSettings(queue=4, per_client=3, payload_bytes=300_000)


class Box:
    """The server of a daemon that has no broker."""

    def __init__(self, model: FakeModel, settings: Settings, *, live: bool = False) -> None:
        self.model = model
        self.admission = Admission(settings.limits.queue, settings.limits.per_client)
        parser = Parser(settings, "fake", 128)
        self.local = LocalRequests(self.admission, parser)
        self.worker = Worker(self.admission, model, settings.limits)
        self._thread = threading.Thread(target=self.worker.run, daemon=True)
        self.backend = Backend(parser, model.info, self.local, self.worker.forget, 1, live)
        server = Server.of(settings, "1.0")
        assert server is not None
        self.server = server
        self.server.start()
        self.url = f"http://127.0.0.1:{server.address[1]}"

    def load(self) -> None:
        """The model is there."""
        self._thread.start()
        self.server.prepare(self.backend)
        self.server.open()

    def client(self, **more: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=20, **more)

    def close(self) -> None:
        self.model.gate.set()
        self.admission.close()
        self.local.close()
        self.admission.stop_running()
        self.server.stop()
        self.server.join(20)
        assert not self.server._thread.is_alive()


@pytest.fixture
def start(model: FakeModel, tmp_path: Path) -> Iterator[Callable[..., Box]]:
    """Starts a server; what is given are settings of [http]."""
    boxes: list[Box] = []

    def begin(
        *,
        token: str | None = None,
        limits: LimitsSettings = LIMITS,
        loaded: bool = True,
        live: bool = False,
        **http: Any,
    ) -> Box:
        if token is not None:
            file = tmp_path / "token"
            file.write_text(f"{token}\n")
            http["token_file"] = file
        chosen = replace(HttpSettings(listen="127.0.0.1:0"), **http)
        box = Box(model, Settings(limits=limits, http=chosen), live=live)
        boxes.append(box)
        if loaded:
            box.load()
        return box

    yield begin
    for box in boxes:
        box.close()


@pytest.fixture
def box(start: Callable[..., Box]) -> Box:
    return start()


@pytest.fixture
def http(box: Box) -> Iterator[httpx2.Client]:
    with box.client() as client:
        yield client
