"""The service as it is installed: unit, sandbox, watchdog, upgrade. Run by `make test-board`."""

from __future__ import annotations

import re
import time

import pytest

from tests.board.conftest import ROOT, SERVICE
from tests.e2e.crowd import measured, since

pytestmark = pytest.mark.slow

ANSWER = "The zoo opens at 9 am."


def test_it_starts_in_its_sandbox_without_a_network_and_answers(board):
    assert board.property("ActiveState") == "active"
    assert board.property("Type") == "notify"
    assert board.asked() == ANSWER
    user = int(board.run("ps", "-o", "uid=", "-p", str(board.main_pid())))
    assert 61184 <= user <= 65519  # of systemd's dynamic users
    status = board.run("cat", f"/proc/{board.main_pid()}/status")
    assert re.search(r"NoNewPrivs:\t1", status)
    assert re.search(r"CapEff:\t0000000000000000", status)
    assert re.search(r"Seccomp:\t2", status)
    journal = board.journal()
    assert "cpuinfo" not in journal
    assert re.search(r"request id=\w+ kind=ask outcome=ok wait_s=[\d.]+ total_s=[\d.]+ first_token_s=", journal)
    priorities = board.run("journalctl", "-u", SERVICE, "-o", "json", "--output-fields=PRIORITY", "--no-pager")
    assert '"PRIORITY":"6"' in priorities.replace(" ", "")


def test_doctor_finds_nothing_to_mend(board):
    assert "MEND" not in board.run("edge-runtime", "doctor")


def test_health_and_metrics_are_on_loopback(board):
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/{}').read().decode())"
    assert '"ok"' in board.run("python3", "-c", code.format("healthz"))
    metrics = board.run("python3", "-c", code.format("metrics"))
    assert 'edge_runtime_requests_total{kind="ask",outcome="ok"}' in metrics
    assert "edge_runtime_mqtt_connected 1" in metrics


@pytest.mark.parametrize("thread", ["worker", "mqtt", "desk"])
def test_a_thread_that_hangs_is_seen_and_the_service_begins_anew(board, thread):
    board.drop_in("WatchdogSec=8\nTimeoutAbortSec=3")
    board.run("systemctl", "restart", SERVICE)
    assert board.asked() == ANSWER
    before = board.restarts()
    board.run("cp", "/opt/wheelhouse/hang.py", "/tmp/hang.py")
    hanging = board.popen("python3", "/tmp/hang.py", str(board.main_pid()), thread)
    assert hanging.stdout.readline() == "stopped\n"
    started = time.monotonic()
    board.wait_restarted(before)
    measured(f"{thread} hangs, watchdog of 8 s", since(started))
    hanging.kill()
    hanging.wait()
    assert board.asked() == ANSWER
    assert f"hung: {thread}" in board.journal()
    assert "Watchdog timeout" in board.journal()


def test_a_process_that_stands_still_begins_anew(board):
    before = board.restarts()
    board.run("kill", "-STOP", str(board.main_pid()))
    started = time.monotonic()
    board.wait_restarted(before)
    measured("the process stands still, watchdog of 8 s", since(started))
    assert board.asked() == ANSWER


def test_a_killed_process_begins_anew(board):
    before = board.restarts()
    board.run("kill", "-KILL", str(board.main_pid()))
    started = time.monotonic()
    board.wait_restarted(before)
    measured("kill -9 of the service", since(started))
    assert board.asked() == ANSWER


def test_it_stops_in_time(board):
    started = time.monotonic()
    board.run("systemctl", "stop", SERVICE)
    assert board.property("Result") == "success"
    measured("systemctl stop", since(started))
    board.run("systemctl", "start", SERVICE)
    assert board.asked() == ANSWER


def test_settings_are_taken_over_without_a_restart(board):
    pid = board.main_pid()
    board.configure("[limits]\nqueue = 3\n[mqtt]\nkeepalive_s = 20\n")
    board.run("systemctl", "reload", SERVICE)
    wait_for(lambda: "changed: limits.queue; after a restart: mqtt.keepalive_s" in board.journal())
    board.configure("[limits]\nqueu = 3\n")
    board.run("systemctl", "reload", SERVICE)
    wait_for(lambda: "unknown key limits.queu" in board.journal())
    assert board.main_pid() == pid
    board.configure("")
    assert board.asked() == ANSWER


def test_a_password_comes_as_a_credential(board):
    (board.root / "etc/mosquitto/conf.d/test.conf").write_text(
        "listener 1883 localhost\nallow_anonymous true\npassword_file /etc/mosquitto/users\n"
    )
    board.run("sh", "-c", "rm -f /etc/mosquitto/users; touch /etc/mosquitto/users; chmod 644 /etc/mosquitto/users")
    board.run("mosquitto_passwd", "-b", "/etc/mosquitto/users", "box", "secret")
    board.run("systemctl", "restart", "mosquitto")
    secret = board.root / "etc/edge-runtime/secrets/mqtt-password"
    try:
        secret.write_text("secret\n")
        secret.chmod(0o600)
        board.configure('[mqtt]\nusername = "box"\npassword_file = "mqtt-password"\n')
        board.run("systemctl", "restart", SERVICE)
        assert board.asked() == ANSWER
        log = board.run("sh", "-c", "cat /var/log/mosquitto/mosquitto.log")
        assert "u'box'" in log
        assert "MEND" not in board.run("edge-runtime", "doctor")
    finally:
        board.configure("")
        (board.root / "etc/mosquitto/conf.d/test.conf").unlink()
        secret.unlink(missing_ok=True)
        board.run("systemctl", "restart", "mosquitto", SERVICE)


def test_an_upgrade_keeps_settings_and_state_and_a_bad_one_comes_back(board):
    board.configure("[limits]\nqueue = 5\n")
    state = board.root / "var/lib/private/edge-runtime"
    (state / "kept").write_text("state")
    release = board.run("readlink", "/opt/edge-runtime/venv")
    board.run("sh", "/opt/wheelhouse/install.sh")
    upgraded = board.run("readlink", "/opt/edge-runtime/venv")
    assert upgraded != release
    assert (state / "kept").read_text() == "state"
    assert board.run("cat", "/etc/edge-runtime/config.toml") == "[limits]\nqueue = 5"
    assert board.asked() == ANSWER
    # A version that does not start: its settings are broken for it.
    board.configure("[limits]\nqueue = 0\n")
    board.drop_in("TimeoutStartSec=20\nRestart=no")
    assert "the one before is back" in board.run("sh", "/opt/wheelhouse/install.sh", check=False)
    assert board.run("readlink", "/opt/edge-runtime/venv") == upgraded
    board.configure("")
    board.drop_in("WatchdogSec=180")
    board.run("systemctl", "restart", SERVICE)
    assert board.asked() == ANSWER


def test_taken_away_it_leaves_settings_and_state_until_they_are_purged(board):
    board.run("sh", "/opt/wheelhouse/install.sh", "--uninstall")
    assert not (board.root / "opt/edge-runtime").exists()
    assert not (board.root / "etc/systemd/system/edge-runtime.service").exists()
    assert (board.root / "etc/edge-runtime/config.toml").is_file()
    assert any((board.root / "var/lib/private/edge-runtime").iterdir())
    board.run("sh", "/opt/wheelhouse/install.sh", "--uninstall", "--purge")
    for path in ("etc/edge-runtime", "var/lib/private/edge-runtime", "usr/local/bin/edge-runtime"):
        assert not (board.root / path).exists()
    assert board.run("systemctl", "is-system-running", check=False) in {"running", "degraded"}


def wait_for(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_unit_is_the_one_of_the_source_tree(board):
    assert (board.root / "opt/wheelhouse/edge-runtime.service").read_text() == (
        ROOT / "systemd/edge-runtime.service"
    ).read_text()
