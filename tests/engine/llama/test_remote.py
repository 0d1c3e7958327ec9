"""The token for a model on another box: where it is read from, and what is said when that does not go."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import pytest

from edge_runtime.engine.llama.remote import open_remote
from edge_runtime.errors import EdgeRuntimeError

LISTED = {"data": [{"id": "big", "context": 2048, "modalities": ["text"]}]}
TOKEN = "a token of another box"


@pytest.fixture
def elsewhere():
    """An edge-runtime's list of models, for who shows the token."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            body = json.dumps(LISTED if known else {}).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("content", [f"{TOKEN}\n", f"{TOKEN}\r\n\nnotes"])
def test_the_token_is_a_files_first_line(elsewhere, tmp_path, content):
    file = tmp_path / "token"
    file.write_text(content, newline="")
    engine = open_remote(elsewhere, file)
    assert engine.info["name"] == "big"
    engine.close()


def test_a_bare_name_is_a_credential_of_systemd(elsewhere, tmp_path, monkeypatch):
    (tmp_path / "big-box").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    engine = open_remote(elsewhere, Path("big-box"))
    assert engine.info["context"] == 2048
    engine.close()


def test_a_token_that_cannot_be_read_is_named(elsewhere, tmp_path):
    with pytest.raises(EdgeRuntimeError, match=r"route\.token_file .*nothing: No such file or directory"):
        open_remote(elsewhere, tmp_path / "nothing")


def test_a_wrong_token_is_said(elsewhere, tmp_path):
    (tmp_path / "token").write_text("another")
    with pytest.raises(EdgeRuntimeError, match="does not accept our key"):
        open_remote(elsewhere, tmp_path / "token")
