from __future__ import annotations

import json

import pytest

from edge_runtime.cli.main import main


def test_figures_of_the_built_in_model(capsys: pytest.CaptureFixture[str]):
    command = ["bench", "--json", "--prompt-tokens", "200", "--new-tokens", "6", "--runs", "2", "--threads", "1"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    figures = {"prefill_tokens_per_s", "decode_tokens_per_s", "first_token_s"}
    assert set(report) == figures | {"load_s", "memory", "min", "max"}
    assert set(report["memory"]) == {"anon_mb", "file_mb", "peak_mb", "kv_mb"}
    for name in figures:
        assert 0 <= report["min"][name] <= report[name] <= report["max"][name]
    assert report["prefill_tokens_per_s"] > 0
    assert report["memory"]["peak_mb"] >= report["memory"]["anon_mb"] > 0


def test_for_people(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "--prompt-tokens", "20", "--new-tokens", "4", "--runs", "1", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "tokens written a second" in out
    assert "anon_mb" in out


@pytest.mark.parametrize("option", ["--runs", "--new-tokens", "--prompt-tokens"])
def test_bad_numbers(option: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", option, "0"]) == 2
    assert f"{option} must be" in capsys.readouterr().err
