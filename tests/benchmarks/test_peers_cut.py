"""The comparison of four peers: what LiteRT-LM prints, and the table of made-up figures."""

from __future__ import annotations

import sys

import pytest

from benchmarks.peers import OURS
from benchmarks.peers_cut import LITERT, _run, litert_figures, table

PRINTED = """Number of tokens in prefill: 1024
----- Results -----
Prefill speed:        436.49 tokens/s
Decode speed:         20.57 tokens/s
Init time:            5.7108 s
Time to first token:  2.3946 s
"""


def test_what_litert_prints():
    assert litert_figures(PRINTED, 99.5) == {"prefill": 436.49, "decode": 20.57, "load_s": 5.7108, "peak_mb": 99.5}
    with pytest.raises(ValueError, match="says nothing of decode"):
        litert_figures(PRINTED.replace("Decode", "D."), 1)


def test_a_process_is_measured():
    text, peak = _run([sys.executable, "-c", "print('a' * 3, bytes(50_000_000)[0])"])
    assert text == "aaa 0\n"
    assert 50 < peak < 500


def test_each_figure_stands_beside_ours():
    def run(speed):
        return {"prefill": 10 * speed, "decode": speed, "load_s": 2.0, "peak_mb": 100.0}

    rows = {OURS: [run(99.0), run(4.0), run(6.0), run(5.0)], LITERT: [run(99.0), run(2.0), run(2.5), run(3.0)]}
    lines = table({"rows": rows, "prompt": 1024, "machine": "a machine"}).splitlines()
    assert "| writing, tokens/s | 5 | 2.5 (2.00) |" in lines
    assert "| peak of resident memory, MB | 100 | 100 (1.00) |" in lines
