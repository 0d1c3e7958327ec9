from __future__ import annotations

import time

import pytest

from edge_runtime.perception.echo import Gate, echo_cancellation
from tests.perception.sounds import needs

CANCELLER = ("aec_method=webrtc", "source_master=mic", "sink_master=out", "source_name=clean", "sink_name=heard")


def test_the_gate_is_closed_while_somebody_speaks_and_a_little_longer():
    gate = Gate(tail_s=0.2)
    with gate:
        with gate:
            pass
        assert gate.closed
    assert gate.closed
    deadline = time.monotonic() + 5
    while gate.closed:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_echo_canceller_counts_when_both_defaults_are_its_own(sound_server):
    assert "no echo canceller is loaded" in echo_cancellation().line
    sound_server.control("load-module", "module-echo-cancel", *CANCELLER)
    sound_server.control("set-default-source", "clean")
    sound_server.control("set-default-sink", "out")
    half = echo_cancellation()
    assert not half.active
    assert "the default sink is not the echo canceller's" in half.line
    sound_server.control("set-default-sink", "heard")
    whole = echo_cancellation()
    assert whole.active
    assert whole.server is not None
    assert whole.server.startswith("PulseAudio 1")


@pytest.mark.parametrize(("program", "says"), [("pactl", "no sound server"), (None, "no pactl")])
def test_without_a_sound_server_it_is_half_duplex(tmp_path, monkeypatch, program, says):
    if program is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        needs(program)
        monkeypatch.setenv("PULSE_SERVER", f"unix:{tmp_path / 'nobody'}")
    found = echo_cancellation()
    assert found.server is None
    assert not found.active
    assert found.line.startswith("half-duplex: ")
    assert says in found.line
