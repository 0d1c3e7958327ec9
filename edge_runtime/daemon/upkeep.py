"""Watchdog, pressure, metrics and the log's line for each request: what the daemon does about itself."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from edge_runtime.daemon.journal import fields
from edge_runtime.daemon.metrics import Registry
from edge_runtime.daemon.pressure import Pressure
from edge_runtime.daemon.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_runtime.daemon.admission import Admission, Ticket
    from edge_runtime.daemon.desk import Desk
    from edge_runtime.daemon.http.server import Server
    from edge_runtime.daemon.metrics import Labels
    from edge_runtime.daemon.mqtt import Link
    from edge_runtime.settings import Settings

log = logging.getLogger(__name__)


class Upkeep:
    """Looks after one daemon.

    Attributes:
        metrics: What is counted.
        watchdog: Watches the loops; further ones may be added before `start`.
        pressure: How hard the box has it.
        on_pace: Hears by how much the intervals of watching are to be stretched, when that changes.
    """

    def __init__(self, settings: Settings, admission: Admission, desk: Desk, link: Link) -> None:
        """Hooks itself in; nothing runs yet."""
        self.metrics = Registry()
        self.watchdog = Watchdog()
        self.pressure = Pressure(settings.pressure, self._pressed)
        self.on_pace: Callable[[float], None] = lambda _: None
        self._admission = admission
        admission.beat = self.watchdog.watch("worker", admission.poke).beat
        desk.beat = self.watchdog.watch("desk", desk.entered).beat
        link.beat = self.watchdog.watch("mqtt", link.poke).beat
        admission.on_final, admission.on_refusal = self._final, self._refused
        self._show(link)

    def serve(self, http: Server) -> None:
        """Shows all that on the HTTP server, which is watched, too."""
        pulse = self.watchdog.watch("http", lambda: http.call(pulse.beat))
        http.site.metrics = self.metrics.render
        http.site.trouble = self.watchdog.trouble
        http.site.answered = lambda status: self.metrics.responses.add(status=str(status))
        self.metrics.gauge("http_connections", "Connections to the HTTP server", lambda: float(http.connections))
        self.metrics.gauge("http_talks", "Spoken conversations over WebSockets", lambda: float(http.site.talks))

    def start(self) -> None:
        """Begins to look."""
        self.watchdog.start()
        self.pressure.start()

    def close(self) -> None:
        """Looks no more."""
        self.watchdog.close()
        self.pressure.close()

    def _pressed(self, pressure: Pressure) -> None:
        self._admission.refusal = pressure.refusal
        self.on_pace(pressure.pace)

    def _final(self, ticket: Ticket, body: Mapping[str, Any]) -> None:
        """A request has its final answer: the one line about it. Never what was asked or answered."""
        now = time.monotonic()
        began = ticket.started if ticket.started is not None else now
        outcome = body["error"]["code"] if "error" in body else "ok"
        timing, usage = body.get("timing") or {}, body.get("usage") or {}
        seconds = {"wait_s": began - ticket.received, "total_s": now - began}
        if (first := timing.get("first_token_s")) is not None:
            seconds["first_token_s"] = first
        log.info(
            "request",
            extra=fields(
                id=ticket.id,
                kind=ticket.kind,
                outcome=outcome,
                **seconds,
                prompt_tokens=usage.get("prompt_tokens"),
                completion_tokens=usage.get("completion_tokens"),
                tokens_per_s=timing.get("decode_tokens_per_s"),
            ),
        )
        self.metrics.ended(ticket.kind, outcome, seconds)
        for name in ("prompt", "completion"):
            if tokens := usage.get(f"{name}_tokens"):
                self.metrics.tokens.add(tokens, direction=name)

    def _refused(self, kind: str, request_id: str, code: str) -> None:
        log.info("request", extra=fields(id=request_id, kind=kind, outcome=code, refused="yes"))
        self.metrics.ended(kind, code)

    def _show(self, link: Link) -> None:
        gauge = self.metrics.gauge
        gauge("queue_waiting", "Requests that wait", lambda: float(self._admission.waiting))
        gauge("queue_running", "Requests that run: 0 or 1", lambda: float(self._admission.busy))
        gauge("mqtt_connected", "Whether the broker is there", lambda: float(link.online))
        gauge("mqtt_undelivered", "Messages that the broker has not acknowledged", lambda: float(link.undelivered))
        gauge("hung", "Whether a loop hangs", lambda: float(self.watchdog.trouble() is not None))
        gauge("pressure_level", "0: calm, 1: watching slows, 2: work is refused", lambda: float(self.pressure.level))
        gauge("temperature_celsius", "Of the parts that compute", lambda: self._readings("°C"))
        gauge("pressure_percent", "Time spent waiting, and memory in use", lambda: self._readings("%"))

    def _readings(self, unit: str) -> dict[Labels, float]:
        return {(("source", each.source),): each.value for each in self.pressure.readings if each.unit == unit}
