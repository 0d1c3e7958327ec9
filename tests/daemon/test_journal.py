from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from edge_runtime.daemon.journal import VARIANTS, Calm, Formatter, fields, set_up, to_journal


def record(message, *args, level=logging.INFO, **extra):
    made = logging.LogRecord("edge_runtime.daemon.mqtt", level, "f.py", 1, message, args, None)
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def test_a_line_has_its_values_behind_it():
    line = Formatter().format(record("request", **fields(id="7", outcome="ok", total_s=0.12345, first=None)))
    assert line == "INFO daemon.mqtt: request id=7 outcome=ok total_s=0.123"


def test_nobody_can_make_up_a_line():
    line = Formatter().format(record("camera %s is away", "a\nERROR forged", **fields(id='x" outcome=ok\n<2>y')))
    assert len(line.splitlines()) == 1
    assert line.endswith(r'id="x\" outcome=ok\n<2>y"')


def test_the_journal_hears_priorities_on_every_line():
    form = Formatter(journal=True)
    assert form.format(record("gone", level=logging.WARNING)) == "<4>daemon.mqtt: gone"
    try:
        int("x")
    except ValueError:
        failed = record("failed", level=logging.ERROR)
        failed.exc_info = sys.exc_info()
    lines = form.format(failed).splitlines()
    assert len(lines) > 2
    assert all(line.startswith("<3>") for line in lines)


def test_json_is_one_object_a_line():
    line = Formatter(as_json=True).format(record("request\n", **fields(id="7")))
    body = json.loads(line)
    assert (body["message"], body["id"], body["level"], body["logger"]) == ("request\n", "7", "info", "daemon.mqtt")
    assert "\n" not in line


def test_ten_thousand_equal_errors_are_one_line_a_minute():
    calm = Calm()
    assert sum(calm.filter(record("%s is gone", "broker", level=logging.WARNING)) for _ in range(10_000)) == 1
    assert calm.filter(record("%s is gone", "camera", level=logging.WARNING))
    others = sum(calm.filter(record("%s is gone", number, level=logging.WARNING)) for number in range(100))
    assert others == VARIANTS - 2


def test_what_was_left_out_is_counted_and_said_later():
    calm = Calm(quiet_s=0.0)
    first = record("gone", level=logging.ERROR)
    assert calm.filter(first)
    assert not hasattr(first, "fields")
    calm._kinds["edge_runtime.daemon.mqtt", "gone"].left_out = 41
    later = record("gone", level=logging.ERROR)
    assert calm.filter(later)
    assert later.fields == {"left_out": 41}


def test_what_is_no_trouble_is_never_left_out():
    calm = Calm()
    assert all(calm.filter(record("request")) for _ in range(100))


@pytest.mark.parametrize("ours", [True, False])
def test_the_journal_is_known_by_its_stream(monkeypatch, tmp_path, ours):
    code = "from edge_runtime.daemon import journal; print(journal.to_journal())"
    with (tmp_path / "log").open("wb") as log:
        status = os.fstat(log.fileno())
        stream = f"{status.st_dev}:{status.st_ino if ours else 1}"
        result = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "JOURNAL_STREAM": stream},
            text=True,
            check=True,
        )
    assert result.stdout.strip() == str(ours)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert not to_journal()


def test_the_level_can_be_changed_while_running(capsys):
    root, own = logging.getLogger(), logging.getLogger("edge_runtime")
    before = root.handlers[:], root.level, own.level
    try:
        set_up("warning")
        own.info("quiet")
        set_up("info", "json")
        own.info("loud")
    finally:
        root.handlers[:], root.level = before[0], before[1]
        own.setLevel(before[2])
    written = capsys.readouterr().err
    assert "quiet" not in written
    assert json.loads(written)["message"] == "loud"
