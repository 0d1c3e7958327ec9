"""The model that the settings describe: one engine, or a small and a larger one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import edge_runtime
from edge_runtime import auto
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from edge_runtime.engine.llama.load import Choices
    from edge_runtime.engine.model import Model
    from edge_runtime.engine.protocol import Engine
    from edge_runtime.settings import Settings


def open_model(settings: Settings, memory_budget: str | None = None) -> Model:
    """Loads what `[model]`, `[llama]` and `[route]` say.

    Args:
        settings: All of them.
        memory_budget: Goes before that of `[model]`.

    Raises:
        EdgeRuntimeError: The model of `[model]` cannot be loaded, or `[route]` makes no sense.
    """
    path, route = settings.model.path, settings.route
    if path == Path(auto.NAME):
        path = auto.choose([settings.model.folder] if settings.model.folder else [])
    places = [place for place in (route.path, route.url, route.device) if place is not None]
    if len(places) > 1:
        raise EdgeRuntimeError("route: give one of path, url and device")
    chosen = settings.model
    model = edge_runtime.load(
        path,
        threads=chosen.threads,
        context=chosen.context,
        memory_budget=memory_budget or chosen.memory_budget,
        kv_type=chosen.kv_type,
        sessions=chosen.sessions,
        providers=chosen.providers,
        spin_us=chosen.spin_us,
        gguf=_choices(settings),
    )
    if not places:
        return model
    from edge_runtime.engine.model import Model  # noqa: PLC0415
    from edge_runtime.engine.route import Route, Rules  # noqa: PLC0415

    rules = Rules(route.when, route.modalities, route.tokens)
    return Model(Route(model.engine, lambda: _larger(settings), rules))


def _larger(settings: Settings) -> Engine:
    route = settings.route
    if route.url is not None:
        from edge_runtime.engine.llama.remote import open_remote  # noqa: PLC0415

        return open_remote(route.url, route.token_file)
    if route.device is not None:
        from edge_runtime.daemon.remote import MqttEngine  # noqa: PLC0415

        return MqttEngine(settings.mqtt, route.device)
    return edge_runtime.load(route.path, threads=settings.model.threads, gguf=_choices(settings)).engine


def _choices(settings: Settings) -> Choices:
    from edge_runtime.engine.llama.load import Choices  # noqa: PLC0415

    given = settings.llama
    return Choices(given.server, given.projector, given.drafter, gpu_layers=given.gpu_layers)
