"""Every panel of the dashboard has something to draw: a real Prometheus reads a real daemon on a made-up board."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time

import httpx2
import pytest

from edge_runtime.daemon.http.server import Server
from edge_runtime.daemon.service import Daemon
from edge_runtime.settings import HttpSettings, MqttSettings, Settings, StorageSettings
from tests.daemon.http.test_dashboard import FILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]

JOB = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: edge-runtime
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
BOARD = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "51500",
    "proc/pressure/memory": "some avg10=1.50 avg60=0.00 avg300=0.00 total=1",
    "proc/pressure/cpu": "some avg10=2.50 avg60=0.00 avg300=0.00 total=1",
    "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB",
}


@pytest.fixture
def daemon(model, tmp_path, free_port):
    settings = Settings(
        mqtt=MqttSettings("127.0.0.1", free_port),
        storage=StorageSettings(tmp_path / "state"),
        http=HttpSettings(listen="127.0.0.1:0"),
    )
    for name, text in BOARD.items():
        file = tmp_path / "board" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    server = Server.of(settings, "1.0")
    server.start()
    made = Daemon(settings, model, "1.0", server)
    made.upkeep.pressure._root = tmp_path / "board"
    running = threading.Thread(target=made.run, daemon=True)
    running.start()
    yield server.address[1]
    made.stop()
    running.join(20)


@pytest.fixture
def prometheus(daemon, tmp_path):
    config = tmp_path / "prometheus.yml"
    config.write_text(JOB.format(port=daemon))
    with httpx2.Client() as probe, subprocess.Popen(
        ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
         "--web.listen-address=127.0.0.1:0", "--log.format=json"],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        said = next(line for line in process.stderr if '"Listening on"' in line)
        assert any("Server is ready" in line for line in process.stderr)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield probe, f"http://{json.loads(said)['address']}"
        process.terminate()


def test_every_panel_has_data(daemon, prometheus):
    probe, url = prometheus
    dashboard = json.loads(FILE.read_text(encoding="utf-8"))
    missing = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    deadline = time.monotonic() + 60
    question = {"messages": [{"role": "user", "content": "one two"}]}
    while missing:
        assert time.monotonic() < deadline, missing
        assert probe.post(f"http://127.0.0.1:{daemon}/v1/chat/completions", json=question).status_code == 200
        for expression in sorted(missing):
            query = expression.replace("$__rate_interval", "10s").replace("$box", ".*")
            body = probe.get(f"{url}/api/v1/query", params={"query": query}).json()
            assert body["status"] == "success", body
            if any(sample["value"][1] != "NaN" for sample in body["data"]["result"]):
                missing.discard(expression)
        time.sleep(0.5)
    (heat,) = probe.get(f"{url}/api/v1/query", params={"query": "edge_runtime_temperature_celsius"}).json()["data"][
        "result"
    ]
    assert (heat["metric"]["source"], heat["value"][1]) == ("cpu-thermal", "51.5")
