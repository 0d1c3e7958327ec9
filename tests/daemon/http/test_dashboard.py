"""What Grafana is told to draw is what the daemon shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from edge_runtime.daemon.metrics import PREFIX, Registry
from edge_runtime.daemon.service import Daemon
from edge_runtime.settings import Settings, StorageSettings

FILE = Path(__file__).parents[3] / "deploy" / "grafana" / "edge-runtime.json"
SUFFIXES = ("_bucket", "_sum", "_count")


def base(name):
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def test_the_dashboard_draws_what_there_is_and_all_of_it(box, model, tmp_path):
    daemon = Daemon(Settings(storage=StorageSettings(state_dir=tmp_path)), model, "1.0", box.server)
    shown = set(re.findall(r"^# TYPE (\S+)", daemon.upkeep.metrics.render(), re.MULTILINE))
    assert shown > {PREFIX + name for name in ("requests_total", "http_connections")}
    dashboard = json.loads(FILE.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    drawn = {base(name) for name in re.findall(rf"{PREFIX}\w+", " ".join(expressions))}
    assert drawn == shown
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_answers_are_counted(box, http):
    registry = Registry()
    box.server.site.answered = lambda status: registry.responses.add(status=str(status))
    box.server.site.metrics = registry.render
    http.get("/nothing")
    http.get("/healthz")
    text = http.get("/metrics").text
    assert f'{PREFIX}http_responses_total{{status="404"}} 1' in text
    assert f'{PREFIX}http_responses_total{{status="200"}} 1' in text
    assert box.server.connections == 1
