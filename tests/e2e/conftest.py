"""The real command with the real built-in model, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge_runtime import builtin
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A clean environment, in which the built-in model's bundle is made once a run."""
    try:
        builtin.checkpoint_path()
    except EdgeRuntimeError as error:
        pytest.skip(str(error))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_RUNTIME_")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "EDGE_RUNTIME_CACHE": str(tmp_path_factory.mktemp("cache")),
        "EDGE_RUNTIME_MODEL__THREADS": "2",
    }


@pytest.fixture
def serve(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `edge-runtime serve` on a port, as device `box`."""
    started: list[subprocess.Popen[str]] = []

    def start(port: int, **settings: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "edge_runtime", "serve"],
            env={
                **environment,
                "EDGE_RUNTIME_MQTT__HOST": "127.0.0.1",
                "EDGE_RUNTIME_MQTT__PORT": str(port),
                "EDGE_RUNTIME_MQTT__DEVICE": "box",
                **settings,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()
