"""`edge-runtime serve`: settings, model, daemon, signals."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

HELP = (
    "The daemon: answers requests that come over MQTT, until SIGTERM or Ctrl-C. Without a settings file it runs the "
    "built-in model and uses the broker on localhost."
)
EXAMPLE = "edge-runtime serve --config /etc/edge-runtime/config.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument(
        "--config", type=Path, metavar="F", help="settings file (default: /etc/edge-runtime/config.toml if it exists)"
    )


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    from edge_runtime import settings as settings_module
    from edge_runtime.cli.main import version

    settings = settings_module.load(args.config)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if settings.storage.state_dir is not None or "STATE_DIRECTORY" in os.environ:
        # Where the built-in model's bundle goes, unless somebody has said so.
        os.environ.setdefault("EDGE_RUNTIME_CACHE", str(settings_module.state_folder(settings.storage)))

    import edge_runtime
    from edge_runtime.daemon.service import Daemon

    # Until the daemon is there to stop, a signal ends the process: nothing has been promised to anyone yet.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    model = edge_runtime.load(settings.model.path, threads=settings.model.threads, context=settings.model.context)
    daemon = Daemon(settings, model, version())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: daemon.stop())
    logging.getLogger("edge_runtime").info("%s is loaded; serving", model.info["name"])
    if not daemon.run():
        os._exit(0)  # a model at work cannot be closed, and all that matters is on the disk
    model.close()
    return 0
