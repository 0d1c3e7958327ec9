"""`edge-runtime doctor`: what this box has, and how to mend what is missing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import argparse

    from edge_runtime.settings import Settings

HELP = (
    "Look at everything that the settings name: machine, providers, memory, state, broker, HTTP, microphones, cameras, "
    "voice. One line each: ok, or how to mend it. Exit status 0 if nothing must be mended, 1 if something must."
)
EXAMPLE = "edge-runtime doctor --config /etc/edge-runtime/config.toml"

UNIT = Path("/etc/systemd/system/edge-runtime.service")
SECRETS = Path("/etc/edge-runtime/secrets")
STATE = Path("/var/lib/edge-runtime")
_MARKS = {"ok": "ok  ", "note": "note", "bad": "MEND"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument(
        "--config", type=Path, metavar="F", help="settings file (default: /etc/edge-runtime/config.toml if it exists)"
    )
    parser.add_argument("--json", action="store_true", help='print {"ok", "findings": [{"state", "topic", "line"}]}')
    parser.add_argument(
        "--write-limits", action="store_true", help="set the service's MemoryMax to what the model needs; needs root"
    )
    parser.add_argument("--quiet", action="store_true", help="with --write-limits: look at nothing else")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if nothing must be mended."""
    from edge_runtime import settings as settings_module
    from edge_runtime.daemon.checkup import examine

    settings = settings_module.load(args.config)
    if UNIT.is_file() and os.geteuid() == 0:  # look with the service's eyes
        os.environ.setdefault("CREDENTIALS_DIRECTORY", str(SECRETS))
        os.environ.setdefault("STATE_DIRECTORY", str(STATE))
    if args.write_limits:
        _write_limits(settings, UNIT)
        if args.quiet:
            return 0
    findings = []
    for finding in examine(settings, UNIT if Path("/run/systemd/system").is_dir() else None):
        findings.append(finding)
        if not args.json:
            print(f"{_MARKS[finding.state]}  {finding.topic}: {finding.line}", flush=True)
    sound = all(finding.state != "bad" for finding in findings)
    if args.json:
        listed = [{"state": each.state, "topic": each.topic, "line": each.line} for each in findings]
        print(json.dumps({"ok": sound, "findings": listed}))
    return 0 if sound else 1


def _write_limits(settings: Settings, unit: Path) -> None:
    from edge_runtime.daemon.checkup import memory_limit
    from edge_runtime.machine import memory, readable

    limit = memory_limit(settings)
    total = memory().total
    if limit > total:
        print(f"edge-runtime: {readable(limit)} would be needed, there are {readable(total)}", file=sys.stderr)
        limit = total
    folder = unit.parent / f"{unit.name}.d"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "memory.conf"
        text = f"# By edge-runtime doctor --write-limits, from the model's need.\n[Service]\nMemoryMax={limit}\n"
        temporary = file.with_suffix(".new")
        temporary.write_text(text, encoding="ascii")
        temporary.chmod(0o644)
        os.replace(temporary, file)  # noqa: PTH105 - one step
    except OSError as error:
        raise EdgeRuntimeError(f"{folder}: {error.strerror or error}") from None
    print(f"MemoryMax={readable(limit)} in {file}; then: systemctl daemon-reload, systemctl restart {unit.stem}")
