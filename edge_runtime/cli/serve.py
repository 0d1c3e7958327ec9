"""`edge-runtime serve`: settings, model, daemon, signals."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from edge_runtime.daemon.http.server import Server
    from edge_runtime.daemon.service import Daemon
    from edge_runtime.settings import Settings

STOP_S = 8.0
"""Ending takes five seconds at most; systemd waits ten."""

HELP = (
    "The daemon: answers requests that come over MQTT and HTTP, until SIGTERM or Ctrl-C. Without a settings file it "
    "runs the built-in model, uses the broker on localhost and listens on 127.0.0.1:8080."
)
EXAMPLE = "edge-runtime serve --config /etc/edge-runtime/config.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument(
        "--config", type=Path, metavar="F", help="settings file (default: /etc/edge-runtime/config.toml if it exists)"
    )
    parser.add_argument("--memory", metavar="SIZE", help="what the model may take, such as 2G (default: the settings)")


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    from edge_runtime import settings as settings_module
    from edge_runtime.cli.main import version
    from edge_runtime.daemon import journal

    settings = settings_module.load(args.config)
    journal.set_up(settings.log.level, settings.log.format)
    faulthandler.enable()  # a watchdog's SIGABRT shows where each thread was
    if settings.storage.state_dir is not None or "STATE_DIRECTORY" in os.environ:
        # Where the built-in model's bundle goes, unless somebody has said so.
        os.environ.setdefault("EDGE_RUNTIME_CACHE", str(settings_module.state_folder(settings.storage)))

    from edge_runtime.daemon.models import open_model
    from edge_runtime.daemon.service import Daemon

    http = _http(settings, version())  # before the model is loaded: it says that it is not ready
    # Until the daemon is there to stop, a signal ends the process: nothing has been promised to anyone yet.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    model = open_model(settings, args.memory)
    daemon = Daemon(settings, model, version(), http)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop(daemon))
    daemon.on_settings["log"] = lambda changed: journal.set_up(changed.log.level, changed.log.format)
    signal.signal(signal.SIGHUP, lambda *_: daemon.reload(lambda: settings_module.load(args.config)))
    logging.getLogger("edge_runtime").info("%s is loaded; serving", model.info["name"])
    if daemon.run():  # a model at work cannot be closed
        model.close()
    # All that matters is on the disk. Threads may be in native code yet, a model's or a voice detector's: the
    # interpreter's own end would abort there.
    logging.shutdown()
    os._exit(0)


def _stop(daemon: Daemon) -> None:
    """Ends the daemon; where that hangs, it says where and ends all the same."""
    faulthandler.dump_traceback_later(STOP_S, exit=True)
    daemon.stop()


def _http(settings: Settings, version: str) -> Server | None:
    """The HTTP server, serving; None: there is to be none."""
    if settings.http.listen == "off":
        return None
    from edge_runtime.daemon.http.server import Server

    server = Server.of(settings, version)
    if server is not None:
        server.start()
    return server
