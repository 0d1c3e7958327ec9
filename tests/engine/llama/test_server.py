"""What goes wrong with a server: each is said in one line, or mended without a lost request."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_runtime import machine
from edge_runtime.engine.llama import server as server_module
from edge_runtime.engine.llama.client import ask
from edge_runtime.engine.llama.load import Choices, open_gguf
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.errors import EdgeRuntimeError

pytestmark = pytest.mark.gguf

WAIT_S = 20.0


@pytest.fixture
def engine(nano_gguf):
    engine = open_gguf(nano_gguf, threads=1, choices=Choices(alone=True))
    yield engine
    engine.close()


def _story(engine, fault=None):
    """A long answer; `fault` is called with the server's process id in the middle of it."""
    sampling = Sampling(temperature=1.5, seed=3)
    messages = [{"role": "user", "content": "word " * 1500 + "Tell me a story"}]
    text = ""
    for count, piece in enumerate(engine.run(Request(messages=messages, sampling=sampling, max_tokens=300)), 1):
        text += piece.text
        if fault is not None and count == 20:
            fault, run = None, fault
            run(engine._backend.pid)
    return text, piece


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_server_that_dies_or_hangs_costs_no_answer(engine, number):
    whole, end = _story(engine)
    first = engine._backend.pid
    text, last = _story(engine, lambda pid: os.kill(pid, number))
    assert (text, last.finish_reason) == (whole, end.finish_reason)
    assert engine._backend.pid != first


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_fault_between_requests_is_mended_by_the_next(engine, number):
    before, _ = _story(engine)
    os.kill(engine._backend.pid, number)
    assert _story(engine)[0] == before


def test_a_request_that_kills_twice_is_an_error_and_the_next_is_answered(engine):
    with pytest.raises(EdgeRuntimeError, match="twice at this request") as caught:
        for _ in _killing(engine):
            pass
    assert caught.value.code == "internal"
    assert _story(engine)[1].finish_reason in {"stop", "length"}


def _killing(engine):
    """An answer whose server is killed whenever it says something."""
    killed = set()
    messages = [{"role": "user", "content": "word " * 1500 + "Tell me a story"}]
    for piece in engine.run(Request(messages=messages, max_tokens=100)):
        if (pid := engine._backend.pid) not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        yield piece


def test_no_server_outlives_a_parent_that_is_killed(nano_gguf):
    code = (
        "import sys, time; from pathlib import Path; from edge_runtime.engine.llama.load import open_gguf\n"
        "e = open_gguf(Path(sys.argv[1]), threads=1); print(e._backend.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(nano_gguf)], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
    assert os.getsid(pid) == pid
    parent.kill()
    parent.wait(WAIT_S)
    _until(lambda: not _alive(pid))
    parent.stdout.close()


def test_the_server_wants_its_key_and_greets_no_origin(engine):
    address = engine._backend.address()
    assert ask(address, "/v1/models")["data"]
    connection = http.client.HTTPConnection(address.host, address.port)
    connection.request("GET", "/v1/models", headers={"Origin": "https://example.org"})
    answer = connection.getresponse()
    assert answer.status == 401
    assert answer.headers.get("Access-Control-Allow-Origin") not in {"*", "https://example.org"}
    connection.close()
    assert address.key not in Path(f"/proc/{engine._backend.pid}/cmdline").read_text()


def test_a_port_that_somebody_takes_first_is_given_up_for_another(nano_gguf, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1]])
        free = machine.free_port
        monkeypatch.setattr(server_module, "free_port", lambda: next(ports, None) or free())
        engine = open_gguf(nano_gguf, threads=1, choices=Choices(alone=True))
        assert engine._backend.address().port != taken.getsockname()[1]
        engine.close()


def test_damage_that_the_head_does_not_show_is_said(nano_gguf, tmp_path):
    data = bytearray(nano_gguf.read_bytes())
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4
    data[at : at + 8] = (7).to_bytes(8, "little")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data)
    with pytest.raises(EdgeRuntimeError, match=r"broken\.gguf") as caught:
        open_gguf(broken, threads=1, choices=Choices(alone=True))
    assert "\n" not in str(caught.value)


def test_an_architecture_that_llama_cpp_does_not_know_is_said(nano_gguf, tmp_path):
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(nano_gguf.read_bytes().replace(b"gemma4", b"gemmaX"))
    with pytest.raises(EdgeRuntimeError, match="does not know the architecture 'gemmaX'"):
        open_gguf(odd, threads=1, choices=Choices(alone=True))


def test_too_little_memory_at_load_is_said(nano_gguf, monkeypatch, tmp_path):
    """The child may take less than the model needs, as if others had taken it since the plan was made."""
    script = tmp_path / "small"
    script.write_text(f'#!/bin/sh\nulimit -v 160000\nexec {sys.executable} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(EdgeRuntimeError, match=r"does not fit the memory|cannot be loaded") as caught:
        open_gguf(nano_gguf, threads=1, choices=Choices(alone=True))
    assert "\n" not in str(caught.value)


def test_a_budget_that_is_too_small_is_refused_before_anything_starts(nano_gguf):
    with pytest.raises(EdgeRuntimeError, match=r"nano\.gguf needs .* would fit"):
        open_gguf(nano_gguf, threads=1, choices=Choices(memory_budget=10_000_000))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _until(true):
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
