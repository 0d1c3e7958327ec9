"""The clock on the wall jumps: a board without a battery starts in 1970 and hears the time from the network."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.conftest import BASE, wait_online
from tests.e2e.crowd import Crowd, measured, since

pytestmark = pytest.mark.slow

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed")
def test_jumps_of_the_clock_disturb_nobody(mosquitto, mqtt_client, serve, tmp_path):
    clock = tmp_path / "clock"
    clock.write_text("-56y")
    daemon = serve(
        mosquitto.port,
        LD_PRELOAD=str(LIBRARY),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        FAKETIME_NO_CACHE="1",
    )
    wait_online(mqtt_client)
    with Crowd(mosquitto.port, 1) as crowd:
        for number, jump in enumerate(("-56y", "+0", "+10y", "-3d", "+0")):
            clock.write_text(jump)
            started = time.monotonic()
            for deadline in (60, None):
                body = {"prompt": "When does the zoo open?", **({"deadline_s": deadline} if deadline else {})}
                crowd.ask(f"{BASE}/ask", body, f"{number}-{deadline}")
            crowd.ask(f"{BASE}/ask", {"prompt": "When does the zoo open?"}, "the same id each time")
            crowd.wait(len(set(crowd.sent)), timeout_s=60)
            measured(f"clock jumps to {jump}: answers", since(started))
        assert crowd.codes() == {"ok": 11}
        # A jump of years makes ids old: then the same one is a new request.
        assert len(crowd.finals["the same id each time"]) <= 5
    daemon.stop()
    assert "Traceback" not in daemon.log
    assert "hung" not in daemon.log
