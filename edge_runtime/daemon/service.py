"""Wires the daemon together: the line to the desk, the desk to the waiting room, the worker to the model."""

from __future__ import annotations

import logging
import re
import threading
from typing import TYPE_CHECKING

from edge_runtime.daemon.admission import Admission
from edge_runtime.daemon.desk import Desk
from edge_runtime.daemon.mqtt import Link
from edge_runtime.daemon.notify import notify
from edge_runtime.daemon.requests import Parser
from edge_runtime.daemon.store import Store
from edge_runtime.daemon.worker import Worker
from edge_runtime.settings import state_folder

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.daemon.worker import Model
    from edge_runtime.settings import Settings

log = logging.getLogger(__name__)

# On stop, the running request may finish for this long, then it is asked to stop and has a little longer. All in all
# under five seconds: what is not done then is done after the next start.
FINISH_S = 2.5
CANCEL_S = 1.0
FAREWELL_S = 1.0


class Daemon:
    """The daemon, from a loaded model to a clean end.

    Example:
        daemon = Daemon(settings, model, version="1.0")
        signal.signal(signal.SIGTERM, lambda *_: daemon.stop())
        daemon.run()
    """

    def __init__(self, settings: Settings, model: Model, version: str) -> None:
        """Opens the store; nothing runs yet.

        Raises:
            EdgeRuntimeError: The store, the password or the CA file cannot be used.
        """
        limits = settings.limits
        info = {
            "version": version,
            "model": model.info["name"],
            "modalities": list(model.info["modalities"]),
            "context": model.info["context"],
            "queue": limits.queue,
            "limits": {
                "per_client": limits.per_client,
                "payload_bytes": limits.payload_bytes,
                "audio_s": limits.audio_s,
                "images": limits.images,
                "image_pixels": limits.image_pixels,
            },
        }
        parser = Parser(settings, model.info["name"], model.info["context"])
        self._admission = Admission(limits.queue, limits.per_client)
        storage = settings.storage
        self._store = Store(store_file(settings), storage.remembered_ids, storage.remembered_s)
        self._desk = Desk(self._store, self._admission, parser)
        self._link = Link(settings.mqtt, info, limits.payload_bytes, self._desk)
        self._worker = Worker(self._admission, model, parser, self._desk)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Makes `run` come to its end; safe in a signal handler."""
        self._stop.set()

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
        self._link.start()
        notify("READY=1")
        self._stop.wait()
        notify("STOPPING=1")
        log.info("stopping")
        self._admission.close()
        idle = self._admission.wait_idle(finish_s)
        if not idle:
            self._admission.stop_running()
            idle = self._admission.wait_idle(CANCEL_S)
        self._link.stop(FAREWELL_S)
        self._desk.close()
        threads[0].join(FAREWELL_S)
        self._store.close()
        return idle

    def _parts(self) -> list[tuple[str, Desk | Worker]]:
        return [("desk", self._desk), ("worker", self._worker)]


def store_file(settings: Settings) -> Path:
    """The store's file: one for each daemon of this machine, told apart by their topics."""
    name = re.sub(r"[^\w.-]", "-", f"{settings.mqtt.prefix}-{settings.mqtt.device}")[:100]
    return state_folder(settings.storage) / f"{name}.requests.db"
