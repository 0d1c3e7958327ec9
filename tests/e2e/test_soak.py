"""A day's requests in some minutes: one every ten seconds is 8640, of all kinds, with broken lines between them."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from pathlib import Path

import pytest

import edge_runtime
from tests.e2e.conftest import BASE, wait_online
from tests.e2e.crowd import Crowd, measured, since

pytestmark = pytest.mark.slow

ASSETS = Path(edge_runtime.__file__).parent / "demo_assets"
REQUESTS = int(os.environ.get("EDGE_RUNTIME_SOAK", "8640"))
ROUND = 480
# What may come with the first rounds: arenas of the allocator, caches that are bounded.
WARM_ROUNDS = 3


def figures(daemon):
    """Memory in MB, open files, threads, MB in the folder of the state."""
    process = Path(f"/proc/{daemon.process.pid}")
    size = sum(file.stat().st_size for file in daemon.state.rglob("*.db*"))
    return (
        daemon.memory_mb(),
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
        size / 2**20,
    )


def one(crowd, number, wav, image):
    """The n-th request: mostly words, some with history, pictures, speech, mistakes and changes of mind."""
    name, client = f"panel-{number % 7}/{number}", number % 7
    match number % 24:
        case 0 | 12:
            crowd.ask(f"{BASE}/transcribe", wav, name, client)
        case 4 | 16:
            crowd.ask(f"{BASE}/describe", image, name, client)
        case 6:
            crowd.ask(f"{BASE}/ask", b'{"prompt": ', name, client)
        case 7:
            crowd.ask(f"{BASE}/describe", image[: len(image) // 2], name, client)
        case 8:
            crowd.ask(f"{BASE}/ask", {"prompt": "When does the zoo open?", "deadline_s": 0.02}, name, client)
        case 9 | 21:
            crowd.ask(f"{BASE}/ask", {"prompt": "Tell me about the zoo.", "max_tokens": 200}, name, client)
            crowd.say(f"{BASE}/cancel", json.dumps({"id": name}).encode())
        case 3 | 15 | 20:
            body = {"prompt": "When does the gift shop open?", "session": f"s{number % 50}", "stream": True}
            crowd.ask(f"{BASE}/ask", body, name, client)
        case _:
            crowd.ask(f"{BASE}/ask", {"prompt": "When does the zoo open?", "max_tokens": 8}, name, client)


def test_a_day_leaves_nothing_behind(mosquitto, mqtt_client, serve, free_port):
    daemon = serve(mosquitto.port, EDGE_RUNTIME_HTTP__LISTEN=f"127.0.0.1:{free_port}")
    wait_online(mqtt_client)
    wav, image = (next(ASSETS.glob(pattern)).read_bytes() for pattern in ("*.wav", "*.png"))
    rounds = []
    started = time.monotonic()
    with Crowd(mosquitto.port, 7, "panel") as crowd:
        for number in range(REQUESTS):
            crowd.wait_outstanding(10)
            one(crowd, number, wav, image)
            if number % ROUND == ROUND - 1:
                crowd.wait()
                with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=30) as answer:
                    assert b"edge_runtime_hung 0" in answer.read()
                rounds.append(figures(daemon))
                print("{:6d} requests: {:.0f} MB, {} files, {} threads, {:.1f} MB kept".format(number + 1, *rounds[-1]))
        crowd.wait()
        measured(f"{REQUESTS} requests", since(started))
        codes = crowd.codes()
        print(codes)
        assert crowd.repeated() == {}
    assert sum(codes.values()) == REQUESTS
    assert set(codes) <= {"ok", "bad_request", "unsupported_media", "expired", "cancelled", "busy", "internal"}
    assert codes["ok"] > 0.7 * REQUESTS
    warm, last = rounds[WARM_ROUNDS], rounds[-1]
    assert last[0] - warm[0] < 15
    assert last[1] <= warm[1] + 2
    assert last[2] <= warm[2] + 1
    assert last[3] < 8
    assert "hung" not in daemon.log
