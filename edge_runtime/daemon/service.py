"""Wires the daemon together: the line to the desk, the desk to the waiting room, the worker to the model."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from typing import TYPE_CHECKING, Any

from edge_runtime.daemon.admission import Admission
from edge_runtime.daemon.desk import Desk
from edge_runtime.daemon.discovery import announce
from edge_runtime.daemon.local import LocalRequests
from edge_runtime.daemon.mqtt import Link
from edge_runtime.daemon.notify import notify
from edge_runtime.daemon.reload import merge
from edge_runtime.daemon.requests import Parser
from edge_runtime.daemon.senses import Senses
from edge_runtime.daemon.store import Store
from edge_runtime.daemon.upkeep import Upkeep
from edge_runtime.daemon.worker import Worker
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.kiosk.status import Status, planned
from edge_runtime.settings import state_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.daemon.http.server import Server
    from edge_runtime.daemon.loop import LoopThread
    from edge_runtime.daemon.worker import Model
    from edge_runtime.engine.protocol import Info
    from edge_runtime.settings import Settings

log = logging.getLogger(__name__)

# On stop, the running request may finish for this long, then it is asked to stop and has a little longer. All in all
# under five seconds: what is not done then is done after the next start.
FINISH_S = 2.5
CANCEL_S = 1.0
FAREWELL_S = 1.0
# The system may give a signal to any thread, and Python acts on it in the main one, once that wakes up.
AWAKE_S = 0.5


class Daemon:
    """The daemon, from a loaded model to a clean end.

    Example:
        daemon = Daemon(settings, model, version="1.0")
        signal.signal(signal.SIGTERM, lambda *_: daemon.stop())
        daemon.run()

    Attributes:
        upkeep: Its watchdog, metrics and pressure.
        on_settings: Sections that can change while it runs, beside those of `reload`, and who takes them over.
    """

    def __init__(self, settings: Settings, model: Model, version: str, http: Server | None = None) -> None:
        """Opens the store; nothing runs yet.

        Args:
            settings: All of them.
            model: What answers.
            version: Of the program.
            http: A server that runs already and waits for the model.

        Raises:
            EdgeRuntimeError: The store, the password or the CA file cannot be used.
        """
        limits = settings.limits
        self._settings, self._version = settings, version
        self._parser = parser = Parser(settings, model.info["name"], model.info["context"])
        self._admission = Admission(limits.queue, limits.per_client)
        storage = settings.storage
        self._store = Store(store_file(settings), storage.remembered_ids, storage.remembered_s)
        self._desk = Desk(self._store, self._admission, parser)
        info = information(settings, model.info, version)
        self._link = Link(settings.mqtt, info, limits.payload_bytes, self._desk)
        self._admission.on_enter = self._desk.entered
        self._local = LocalRequests(self._admission, parser)
        self._senses = Senses.of(parser, self._local, self._link, streams=hasattr(model, "listen"))
        voice = self._senses is not None and self._senses.ears.speaker is not None
        announce(settings, info, self._link, store_file(settings).with_suffix(".discovery"), voice=voice)
        self._worker = Worker(self._admission, model, limits, self._senses)
        self._model_info = model.info
        self._servers = self._open(model, http)
        self.upkeep = Upkeep(settings, self._admission, self._desk, self._link)
        if self._senses is not None:
            self._desk.on_accept = self._senses.accepted
            self.upkeep.on_pace = self._senses.eyes.pace
        self.on_settings: dict[str, Callable[[Settings], None]] = {}
        self._status = Status(self.upkeep, self._admission, lambda: self._about(model))
        if http is not None:
            self.upkeep.serve(http)
            http.site.status = self._status.snapshot
        self._stopping = False
        self._wanted: Callable[[], Settings] | None = None
        self._signal = threading.Event()

    def _open(self, model: Model, http: Server | None) -> list[LoopThread]:
        """The servers that the settings ask for, which answer once the daemon runs."""
        if http is None and self._settings.wyoming.listen is None:
            return []
        from edge_runtime.daemon.http.jobs import Backend  # noqa: PLC0415 - starlette is not needed by all

        live = hasattr(getattr(model, "engine", None), "listen")
        backend = Backend(self._parser, model.info, self._local, self._worker.forget, int(time.time()), live)
        servers: list[LoopThread] = []
        if http is not None:
            http.prepare(backend)
            servers.append(http)
        if self._settings.wyoming.listen is not None:
            from edge_runtime.daemon.wyoming import Wyoming  # noqa: PLC0415 - an extra

            servers.append(Wyoming(backend, self._version, self._settings.mqtt.device))
        return servers

    def stop(self) -> None:
        """Makes `run` come to its end; safe in a signal handler."""
        self._stopping = True
        self._signal.set()

    def reload(self, read: Callable[[], Settings]) -> None:
        """Makes `run` take over new settings, as far as that goes without a restart; safe in a signal handler.

        Args:
            read: Gives the settings, or raises `EdgeRuntimeError`: then those in force stay.
        """
        self._wanted = read
        self._signal.set()

    def run(self, finish_s: float = FINISH_S) -> bool:
        """Serves until `stop`; then lets the running request finish for `finish_s` seconds, and says goodbye.

        What waits then, and what did not finish, stays in the store and is answered after the next start.

        Returns:
            Whether the model is at rest. If not, it is still in the middle of something and must not be closed.
        """
        self._desk.restore(self._link)
        threads = [threading.Thread(target=part.run, name=name, daemon=True) for name, part in self._parts()]
        for thread in threads:
            thread.start()
        self._status.start()
        self._link.start()
        if self._senses is not None:
            self._senses.open()
        for server in self._servers:
            server.open()
        self.upkeep.start()
        notify("READY=1")
        self._wait()
        notify("STOPPING=1")
        self._status.close()
        self.upkeep.close()
        log.info("stopping")
        if self._senses is not None:
            self._senses.close()
        self._admission.close()
        self._local.close()
        idle = self._admission.wait_idle(finish_s)
        if not idle:
            self._admission.stop_running()
            idle = self._admission.wait_idle(CANCEL_S)
        for server in self._servers:
            server.stop()
        self._link.stop(FAREWELL_S)
        self._desk.close()
        for server in self._servers:
            server.join(FAREWELL_S)
        threads[0].join(FAREWELL_S)
        self._store.close()
        return idle

    def _about(self, model: Model) -> dict[str, Any]:
        """What the owner's page shows beside what `Upkeep` measures."""
        mqtt = self._settings.mqtt
        return {
            "version": self._version,
            "model": {name: self._model_info[name] for name in ("name", "modalities", "context")},
            "plan": planned(getattr(model, "memory", None)),
            "places": self._settings.limits.queue,
            "broker": {"host": mqtt.host, "port": mqtt.port, "device": mqtt.device, "online": self._link.online},
            "devices": None if self._senses is None else self._senses.snapshot(),
        }

    def _wait(self) -> None:
        """Until it is time to stop; takes over settings meanwhile."""
        while not self._stopping:
            self._signal.wait(AWAKE_S)
            self._signal.clear()
            if self._wanted is not None:
                read, self._wanted = self._wanted, None
                notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
                self._take_over(read)
                notify("READY=1")

    def _take_over(self, read: Callable[[], Settings]) -> None:
        try:
            merged, changed, waiting = merge(self._settings, read(), self.on_settings)
        except EdgeRuntimeError as error:
            log.error("the settings stay as they were: %s", error)  # noqa: TRY400 - the user's mistake, not ours
            return
        self._settings = self._parser.settings = merged
        self._admission.resize(merged.limits.queue, merged.limits.per_client)
        self._worker.limit(merged.limits)
        self.upkeep.pressure.settings = merged.pressure
        info = information(merged, self._model_info, self._version)
        self._link.retain(self._link.topics("info"), json.dumps(info))
        for section, hear in self.on_settings.items():
            if any(key.split(".")[0] == section for key in changed):
                hear(merged)
        said = [f"changed: {', '.join(changed)}"] if changed else []
        said += [f"after a restart: {', '.join(waiting)}"] if waiting else []
        log.info("settings read again; %s", "; ".join(said) or "nothing has changed")

    def _parts(self) -> list[tuple[str, Desk | Worker]]:
        return [("desk", self._desk), ("worker", self._worker)]


def information(settings: Settings, model: Info, version: str) -> dict[str, Any]:
    """What the retained topic `info` says."""
    limits = settings.limits
    return {
        "version": version,
        "model": model["name"],
        "modalities": list(model["modalities"]),
        "context": model["context"],
        "queue": limits.queue,
        "limits": {
            "per_client": limits.per_client,
            "payload_bytes": limits.payload_bytes,
            "audio_s": limits.audio_s,
            "images": limits.images,
            "image_pixels": limits.image_pixels,
        },
        "microphones": [{"name": each.name, "mode": each.mode} for each in settings.microphones],
        "cameras": [{"name": each.name, "watched": each.interval_s is not None} for each in settings.cameras],
    }


def store_file(settings: Settings) -> Path:
    """The store's file: one for each daemon of this machine, told apart by their topics."""
    name = re.sub(r"[^\w.-]", "-", f"{settings.mqtt.prefix}-{settings.mqtt.device}")[:100]
    return state_folder(settings.storage) / f"{name}.requests.db"
