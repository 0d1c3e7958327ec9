from __future__ import annotations

import re

from edge_runtime.daemon.metrics import Registry

LINE = re.compile(r'[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? [-+.e\d]+(inf|nan)?')


def test_what_is_counted_is_shown_in_prometheus_format():
    metrics = Registry()
    metrics.ended("ask", "ok", {"total_s": 0.3, "wait_s": 0.0, "first_token_s": 0.2})
    metrics.ended("ask", "ok", {"total_s": 400.0, "wait_s": 0.0})
    metrics.ended("describe", "busy")
    metrics.tokens.add(12, direction="prompt")
    metrics.gauge("temperature_celsius", "Of parts", lambda: {(("source", 'a"b\\\n'),): 41.5})
    text = metrics.render()
    lines = text.splitlines()
    assert text.endswith("\n")
    assert all(line.startswith("# ") or LINE.fullmatch(line) for line in lines)
    for wanted in (
        'edge_runtime_requests_total{kind="ask",outcome="ok"} 2',
        'edge_runtime_requests_total{kind="describe",outcome="busy"} 1',
        'edge_runtime_request_seconds_bucket{kind="ask",le="0.25"} 0',
        'edge_runtime_request_seconds_bucket{kind="ask",le="0.5"} 1',
        'edge_runtime_request_seconds_bucket{kind="ask",le="+Inf"} 2',
        'edge_runtime_request_seconds_sum{kind="ask"} 400.3',
        'edge_runtime_first_token_seconds_count{kind="ask"} 1',
        'edge_runtime_tokens_total{direction="prompt"} 12',
        'edge_runtime_temperature_celsius{source="a\\"b\\\\\\n"} 41.5',
        "# TYPE edge_runtime_request_seconds histogram",
    ):
        assert wanted in lines


def test_the_process_itself_is_shown():
    values = {
        name: float(value)
        for name, value in (line.split(" ") for line in Registry().render().splitlines() if line[0] != "#")
    }
    assert values["edge_runtime_process_resident_memory_bytes"] > 1e6
    assert values["edge_runtime_process_open_fds"] >= 3
    assert values["edge_runtime_process_threads"] >= 1
