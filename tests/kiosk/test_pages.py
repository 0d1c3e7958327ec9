"""What the server gives a browser, without one."""

from __future__ import annotations

import io
import json
import re
import shutil
import wave

import pytest

from edge_runtime.daemon.http.server import Server
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.kiosk.pages import BUILT_IN, FILES, STATIC
from edge_runtime.settings import HttpSettings, KioskSettings, Settings

TOKEN = "sixteen-characters-and-more"


@pytest.fixture
def open_box(box):
    with (made := box(title="City Zoo")).client() as client:
        client.box = made
        yield client


@pytest.mark.parametrize("path", ["/", "/status", *FILES, "/kiosk/theme.css"])
def test_files_come_with_their_type_and_a_strict_policy(open_box, path):
    answer = open_box.get(path)
    assert answer.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert not answer.headers["content-type"].startswith("text/plain")


def test_pages_name_no_other_place():
    for path in FILES.values():
        if path.suffix in {".html", ".js", ".css"}:
            addresses = set(re.findall(r"https?://[^\s\"')]+", path.read_text(encoding="utf-8")))
            assert addresses <= {"http://www.w3.org/2000/svg"}, path.name


def test_pages_keep_nothing_and_make_no_html():
    for path in STATIC.glob("*.js"):
        assert not re.search(
            r"localStorage|sessionStorage|indexedDB|document\.cookie|serviceWorker|caches\b|innerHTML|eval\(",
            path.read_text(encoding="utf-8"),
        ), path.name


def test_every_language_says_everything():
    text = (STATIC / "strings.js").read_text(encoding="utf-8")
    blocks = re.findall(r"^  (\w\w): {\n(.*?)^  },", text, re.DOTALL | re.MULTILINE)
    keys = {language: set(re.findall(r"(?<![\w\"])(\w+): \"", block)) for language, block in blocks}
    assert set(keys) == set(BUILT_IN)
    assert all(those == keys["en"] for those in keys.values())
    asked = {
        key
        for path in STATIC.glob("kiosk.*")
        for key in re.findall(
            r"data-say=\"(\w+)\"|(?<![.\w])say\(\"(\w+)\"|complain\(\"(\w+)\"", path.read_text(encoding="utf-8")
        )
        for key in key
        if key
    }
    assert asked <= keys["en"]


def test_the_settings_are_the_pages(open_box):
    config = open_box.get("/kiosk/config.json").json()
    assert config["title"] == "City Zoo"
    assert config["languages"] == list(BUILT_IN)
    assert not config["voice"]  # the box of these tests has none


def test_a_page_that_is_not_the_newest_can_tell(box):
    with box().client() as one, box(title="other").client() as other:
        builds = [client.get("/kiosk/config.json").json()["build"] for client in (one, one, other)]
    assert builds[0] == builds[1] != builds[2]


def test_there_may_be_no_page(box):
    with box(enabled=False).client() as client:
        assert client.get("/").status_code == 404
        assert client.get("/status").status_code == 200


@pytest.mark.parametrize("path", ["/kiosk/../pages.py", "/kiosk/%2e%2e/pages.py", "/kiosk/", "/kiosk/pages.py"])
def test_only_these_files_are_given(open_box, path):
    assert open_box.get(path).status_code == 404


def test_a_token_keeps_all_but_the_empty_pages(box, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    made = box(http={"token_file": tmp_path / "token"}, voice=True)
    with made.client() as client:
        assert client.get("/").status_code == client.get("/status").status_code == 200
        assert client.get("/kiosk/status.json").status_code == 401
        assert client.post("/kiosk/speech", json={"text": "a", "language": "en"}).status_code == 401
        assert client.get("/kiosk/status.json", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
@pytest.mark.parametrize("language", BUILT_IN)
def test_the_box_speaks(box, language):
    with box(voice=True).client() as client:
        assert client.get("/kiosk/config.json").json()["voice"]
        answer = client.post("/kiosk/speech", json={"text": "1, 2, 3", "language": language})
    assert answer.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(answer.content)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
        assert sound.getnframes() == (len(answer.content) - 44) // 2 > sound.getframerate() / 4


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"a"',
        b"{",
        {"text": "a"},
        {"text": 1, "language": "en"},
        {"text": " ", "language": "en"},
        {"text": "a" * 1001, "language": "en"},
        {"text": "a", "language": "../x"},
        {"text": "a", "language": ["en"]},
    ],
)
def test_what_cannot_be_said_is_refused(open_box, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = open_box.post("/kiosk/speech", content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "bad_request"


def test_a_box_without_a_voice_says_so(open_box, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    answer = open_box.post("/kiosk/speech", json={"text": "a", "language": "en"})
    assert answer.status_code == 500
    assert "espeak-ng" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kiosk", "says"),
    [
        ({"language": "it"}, "kiosk.language 'it' is not among"),
        ({"languages": ("en", "it")}, r"write \[kiosk.strings.it\]"),
        ({"strings": {"de": "hallo"}}, "must be a table"),
        ({"accent": "#f7f3ea"}, "contrast of 1.0"),
    ],
)
def test_settings_that_make_no_page_are_refused(kiosk, says):
    with pytest.raises(EdgeRuntimeError, match=says):
        Server.of(Settings(http=HttpSettings(listen="127.0.0.1:0"), kiosk=KioskSettings(**kiosk)), "1.0")
