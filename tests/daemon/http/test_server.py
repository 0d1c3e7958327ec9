"""Who gets in, with how much and for how long; what the server says about itself; how it ends."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import httpx2
import pytest

from edge_runtime.daemon.http.server import Server, parse_address
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.settings import HttpSettings, Settings

TOKEN = "0123456789abcdef-secret"
QUESTION = {"messages": [{"role": "user", "content": "one two"}]}


def connect(box):
    return socket.create_connection(box.server.address, timeout=20)


def raw(box, request):
    """The whole answer to bytes sent as they are; empty when the server hung up."""
    with connect(box) as line:
        line.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := line.recv(65536)):
            answer += piece
    return answer.decode()


def test_it_listens_before_the_model_is_there(start):
    box = start(loaded=False)
    with box.client() as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
        refused = http.post("/v1/chat/completions", json=QUESTION)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
        assert int(refused.headers["retry-after"]) > 0
        box.load()
        assert http.get("/readyz").status_code == 200
        box.server.site.trouble = lambda: "the broker is gone"
        assert http.get("/healthz").json() == {"status": "the broker is gone"}
        assert http.get("/healthz").status_code == http.get("/readyz").status_code == 503


def test_metrics_are_those_of_the_site(box, http):
    box.server.site.metrics = lambda: "x 1\n"
    answer = http.get("/metrics")
    assert answer.text == "x 1\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_models(http):
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(model["id"], model["object"]) for model in listed["data"]] == [("fake", "model")]
    assert http.get("/v1/models/fake").json() == listed["data"][0]
    assert http.get("/v1/models/else").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/chat/completions", 405)])
def test_what_is_not_there_is_told_in_the_same_form(http, method, path, status):
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("shown", [None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
def test_without_the_token_nobody_gets_in(start, shown):
    box = start(token=TOKEN)
    with box.client(headers={"Authorization": shown} if shown else {}) as http:
        for path in ("/v1/models", "/metrics", "/nothing"):
            answer = http.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert http.post("/v1/chat/completions", json=QUESTION).status_code == 401
        assert http.get("/healthz").status_code == http.get("/readyz").status_code == 200


def test_with_the_token_everything_is_open(start):
    box = start(token=TOKEN)
    with box.client(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        assert http.post("/v1/chat/completions", json=QUESTION).status_code == 200


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"listen": "0.0.0.0:0"}, "token_file is needed"),
        ({"listen": "[::]:0"}, "token_file is needed"),
        ({"listen": "8080"}, "host:port"),
        ({"listen": "127.0.0.1:99999"}, "host:port"),
        ({"listen": "192.0.2.1:1"}, "token_file is needed"),
        ({"listen": "127.0.0.1:0", "token_file": Path("/nowhere")}, "/nowhere: No such file"),
        ({"listen": "127.0.0.1:0", "tls_cert": Path("/nowhere")}, "tls_cert /nowhere: No such file"),
    ],
)
def test_settings_that_cannot_be_are_one_line(changes, says):
    with pytest.raises(EdgeRuntimeError, match=says.replace(".", r"\.")):
        Server.of(Settings(http=HttpSettings(**changes)), "1.0")


def test_a_short_token_is_no_token(start):
    with pytest.raises(EdgeRuntimeError, match="at least 16"):
        start(token="short")


def test_a_taken_address_is_an_error_only_where_it_was_asked_for(box, monkeypatch):
    taken = "{}:{}".format(*box.server.address)
    with pytest.raises(EdgeRuntimeError, match="Address already in use"):
        Server.of(Settings(http=HttpSettings(listen=taken)), "1.0")
    monkeypatch.setattr("edge_runtime.daemon.http.server.DEFAULT_ADDRESS", box.server.address)
    assert Server.of(Settings(), "1.0") is None


def test_it_listens_on_ipv6(start):
    if not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6")
    box = start(listen="[::1]:0")
    assert httpx2.get(f"http://[::1]:{box.server.address[1]}/healthz").status_code == 200


def test_it_speaks_https(start, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    box = start(tls_cert=cert, tls_key=key)
    url = f"https://127.0.0.1:{box.server.address[1]}"
    with httpx2.Client(base_url=url, verify=ssl.create_default_context(cafile=cert)) as http:
        assert http.post("/v1/chat/completions", json=QUESTION).status_code == 200
    with pytest.raises(EdgeRuntimeError, match=r"tls_cert .*cert\.pem"):
        start(tls_cert=cert, tls_key=cert)


def test_the_token_can_be_a_credential_of_systemd(start, tmp_path, monkeypatch):
    (tmp_path / "http").write_text(TOKEN)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    box = start(token_file=Path("http"))
    with box.client(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        assert http.get("/v1/models").status_code == 200


def test_off_is_off():
    assert Server.of(Settings(http=HttpSettings(listen="off")), "1.0") is None


def test_addresses_of_both_kinds():
    assert parse_address("[::1]:80", "x") == ("::1", 80)
    assert parse_address("box.lan:8080", "x") == ("box.lan", 8080)


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:9", 200), ("[::1]", 200), ("evil.example", 403), ("", 403), ("panel.lan", 200)],
)
def test_names_that_a_page_makes_up_are_refused(start, host, status):
    box = start(hosts=("panel.lan",))
    with box.client(headers={"Host": host}) as http:
        assert http.get("/v1/models").status_code == status


def test_pages_of_other_servers_are_refused_unless_allowed(start):
    box = start(cors_origins=("https://panel.lan",))
    with box.client() as http:
        own = {"Origin": box.url}
        assert http.post("/v1/chat/completions", json=QUESTION, headers=own).status_code == 200
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            answer = http.post("/v1/chat/completions", json=QUESTION, headers={"Origin": origin})
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        allowed = {"Origin": "https://panel.lan"}
        answer = http.post("/v1/chat/completions", json=QUESTION, headers=allowed)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://panel.lan")
        asking = {**allowed, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = http.options("/v1/chat/completions", headers=asking)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        assert "POST" in preflight.headers["access-control-allow-methods"]


def test_a_preflight_needs_no_token_but_the_request_does(start):
    box = start(token=TOKEN, cors_origins=("https://panel.lan",))
    origin = {"Origin": "https://panel.lan"}
    with box.client(headers=origin) as http:
        assert http.options("/v1/models", headers={"Access-Control-Request-Method": "GET"}).status_code == 204
        refused = http.get("/v1/models")
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://panel.lan")


def test_a_body_of_100_mb_is_refused_before_it_is_kept(box, http):
    piece = b"x" * 2**20
    whole = http.post("/v1/chat/completions", content=piece * 100, headers={"Content-Type": "application/json"})
    assert (whole.status_code, whole.json()["error"]["code"]) == (413, "too_large")
    pieces = http.post(
        "/v1/chat/completions", content=(piece for _ in range(100)), headers={"Content-Type": "application/json"}
    )
    assert pieces.status_code == 413
    assert http.post("/v1/chat/completions", json=QUESTION).status_code == 200


def test_bodies_that_wait_together_are_bounded(box, http):
    box.server._config.app._budget._left = 100
    answer = http.post("/v1/chat/completions", json=QUESTION | {"user": "x" * 200})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
    for _ in range(5):  # what was taken is given back
        assert http.post("/v1/chat/completions", json=QUESTION).status_code == 200


def test_who_sends_a_head_slowly_is_hung_up_on(start):
    box = start(header_s=1)
    with connect(box) as silent, connect(box) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        gone = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not gone.wait(0.1):
                    slow.sendall(b"X: y\r\n")

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert silent.recv(1) == b""
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(1) == b""
        gone.set()
        dripping.join()


def test_who_sends_a_body_slowly_is_told_so(start):
    box = start(body_s=1)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert raw(box, head + b"Content-Length: 100\r\n\r\n{").startswith("HTTP/1.1 408")


def test_a_thousand_idle_connections_leave_it_serving(box, http):
    idle = [connect(box) for _ in range(1000)]
    assert http.post("/v1/chat/completions", json=QUESTION).status_code == 200
    assert len(box.server._config.room._idle) <= 256
    for line in idle:
        line.close()
    assert http.get("/healthz").status_code == 200


def test_whoever_is_served_is_not_pushed_out(start):
    box = start(connections=8)
    box.model.gate.clear()
    answers = []
    with box.client() as http:
        asking = threading.Thread(target=lambda: answers.append(http.post("/v1/chat/completions", json=QUESTION)))
        asking.start()
        assert box.model.begun.wait(20)
        idle = [connect(box) for _ in range(50)]
        box.model.gate.set()
        asking.join()
        for line in idle:
            line.close()
    assert answers[0].status_code == 200


@pytest.mark.parametrize("request_bytes", [b"\x16\x03\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100])
def test_what_is_no_request_is_refused(box, http, request_bytes):
    assert raw(box, request_bytes + b"\r\n\r\n").startswith("HTTP/1.1 4")
    assert http.get("/healthz").status_code == 200


def test_a_head_without_end_is_refused(box, http):
    assert raw(box, b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 200_000).startswith("HTTP/1.1 400")
    assert http.get("/healthz").status_code == 200


def test_the_end_is_soon_and_said(start):
    box = start()
    box.model.gate.clear()
    answers = []
    with box.client() as http, connect(box):
        asking = threading.Thread(target=lambda: answers.append(http.post("/v1/chat/completions", json=QUESTION)))
        asking.start()
        assert box.model.begun.wait(20)
        box.admission.close()
        assert http.post("/v1/chat/completions", json=QUESTION).status_code == 503
        box.admission.stop_running()
        assert box.admission.wait_idle(20)
        box.server.stop()
        box.server.join(20)
        asking.join()
    assert not box.server._thread.is_alive()
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "busy")
    with pytest.raises(OSError, match="refused"):
        connect(box)


def test_idling_costs_nothing(box, http):
    http.get("/healthz")
    task = next(task for task in threading.enumerate() if task is box.server._thread)
    status = Path(f"/proc/self/task/{task.native_id}/status")

    def wakeups():
        lines = status.read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))

    before = wakeups()
    time.sleep(1)
    assert wakeups() - before < 5
