"""Wires the daemon together: the broker's messages to the queue, the queue to the worker, its answers to the broker."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from edge_runtime.daemon import requests
from edge_runtime.daemon.mqtt import Link, Message
from edge_runtime.daemon.notify import notify
from edge_runtime.daemon.queue import RequestQueue
from edge_runtime.daemon.worker import Worker, error_body
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from edge_runtime.daemon.worker import Model
    from edge_runtime.settings import Settings

log = logging.getLogger(__name__)

# On stop, the running request may finish for this long, then it is asked to stop and has a little longer.
FINISH_S = 10.0
CANCEL_S = 5.0
FAREWELL_S = 3.0


class Daemon:
    """The daemon, from a loaded model to a clean end.

    Example:
        daemon = Daemon(settings, model, version="1.0")
        signal.signal(signal.SIGTERM, lambda *_: daemon.stop())
        daemon.run()
    """

    def __init__(self, settings: Settings, model: Model, version: str) -> None:
        self._limits = settings.limits
        self._queue = RequestQueue(settings.limits.queue)
        info = {
            "version": version,
            "model": model.info["name"],
            "modalities": list(model.info["modalities"]),
            "context": model.info["context"],
            "queue": settings.limits.queue,
        }
        self._link = Link(settings.mqtt, info, settings.limits.payload_bytes, self.arrived)
        self._worker = Worker(self._queue, model, settings.limits, self)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Makes `run` come to its end; safe in a signal handler."""
        self._stop.set()

    def run(self, finish_s: float = FINISH_S) -> None:
        """Serves until `stop`; then lets the running request finish for `finish_s` seconds, and says goodbye."""
        thread = threading.Thread(target=self._worker.run, name="worker", daemon=True)
        thread.start()
        self._link.start()
        notify("READY=1")
        self._stop.wait()
        notify("STOPPING=1")
        log.info("stopping")
        for request in self._queue.close():
            self.answer(request.reply, error_body(request.id, "the daemon is stopping", "cancelled"))
        if not self._queue.wait_idle(finish_s):
            self._queue.cancel_running()
            self._queue.wait_idle(CANCEL_S)
        self._link.stop(FAREWELL_S)

    def answer(self, reply: requests.Reply, body: dict[str, Any]) -> None:
        """Sends a final answer."""
        self._link.publish(reply.topic, body, reply.correlation)

    def delta(self, reply: requests.Reply, body: dict[str, Any]) -> None:
        """Sends a piece of an answer: on `answer/delta`, or on the level `delta` under the requester's own topic."""
        self._link.publish(f"{reply.topic}/delta", body, reply.correlation)

    def arrived(self, message: Message) -> None:
        """Takes in one message; a request that is not accepted is answered at once."""
        if message.name == "cancel":
            self._cancel(message.payload)
            return
        reply = requests.Reply(message.response_topic or self._link.topics("answer"), message.correlation)
        envelope = requests.Envelope(
            kind=message.name,
            reply=reply,
            received=time.monotonic(),
            expiry_s=message.expiry_s,
            redelivered=message.repeated,
        )
        try:
            request = requests.parse(message.payload, envelope, self._limits)
        except EdgeRuntimeError as error:
            request_id, _ = requests.identify(message.payload, envelope, self._limits)
            self.answer(reply, error_body(request_id, str(error), error.code))
            return
        verdict = self._queue.put(request)
        if verdict == "busy":
            self.answer(
                reply,
                error_body(
                    request.id,
                    "too many requests are waiting",
                    "busy",
                    retry_after_s=self._queue.retry_after_s(),
                ),
            )
        elif verdict == "repeated":
            log.info("%s %s was sent again: it is answered once", request.kind, request.id)

    def _cancel(self, payload: bytes) -> None:
        try:
            request_id = requests.parse_cancel(payload)
        except EdgeRuntimeError as error:
            log.warning("%s", error)
            return
        if waiting := self._queue.cancel(request_id):
            self.answer(waiting.reply, error_body(waiting.id, "the request was cancelled", "cancelled"))
