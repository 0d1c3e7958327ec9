"""The comparison with peers: one process's figures of the built-in model, and the table and picture of made-up ones."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks.peers import MOBILE, OURS, THEIRS, measure, median, table
from benchmarks.peers_plot import draw
from edge_runtime import builtin


def run(speed):
    prompt = {"prefill": 10 * speed, "decode": speed, "first_token_s": 1 / speed}
    memory = {"load_s": 2.0, "anon_mb": 100.0 * speed, "file_mb": 50.0, "peak_mb": 200.0}
    return {"prompts": {"128": prompt, "512": prompt}, **memory}


@pytest.fixture
def result():
    # The first of each only warms up.
    rows = {OURS: [run(99.0), run(4.0), run(6.0), run(5.0)], THEIRS: [run(99.0), run(2.0), run(2.5), run(3.0)]}
    return {"size": "e2b", "threads": 2, "machine": "a machine", "rows": rows}


def test_what_counts_is_the_median_of_all_runs_but_the_first(result):
    assert median(result["rows"][OURS], "prompts", "512", "decode") == 5
    lines = table(result).splitlines()
    assert lines[0] == "a machine"
    assert "| writing after 512, tokens/s | 5.00 | 2.00 | 2.50 |" in lines
    assert "| anonymous, MB | 500 | 2.00 | 250 |" in lines


def test_a_mobile_checkpoint_stands_beside_it(result):
    result["rows"][MOBILE] = [run(99.0), run(10.0), run(10.0), run(10.0)]
    assert "| writing after 512, tokens/s | 5.00 | 2.00 | 10.00 | 4.00 | 2.50 |" in table(result).splitlines()
    assert MOBILE in draw(result)


def test_the_picture_shows_each_length_of_each_peer(result):
    picture = ET.fromstring(draw(result))
    assert len(picture.findall("{*}circle")) == 8
    texts = ["".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {OURS, THEIRS, "128", "512"} <= set(texts)


def test_one_process_measures_reading_writing_and_memory():
    figures = measure(builtin.bundle_path(), [40, 90], threads=1)
    assert set(figures["prompts"]) == {40, 90}
    for found in figures["prompts"].values():
        assert found["tokens"] > 30
        assert found["prefill"] > found["first_token_s"] > 0
    assert 0 < figures["anon_mb"] <= figures["peak_mb"]
