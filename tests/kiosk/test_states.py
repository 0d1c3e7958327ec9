"""Every state that a visitor can see: axe finds nothing in it, and its picture is kept for `docs/kiosk.md`.

The tests only look, unless KEEP_PICTURES is set.
"""

from __future__ import annotations

import shutil

import pytest

from edge_runtime.engine.protocol import Piece
from edge_runtime.errors import EdgeRuntimeError

pytestmark = pytest.mark.browser

ANSWER = (
    "The penguins are fed at **11 am** and at **3 pm**, by the pool behind the café. "
    "Come ten minutes early for a place at the front."
)
QUESTIONS = ("When are the penguins fed?", "Where can I eat?", "Which animals can I see at night?")


@pytest.fixture
def visit(chromium, box, size, sizes, expect):
    def begin(*, begun=True, more=None, **kiosk):
        made = box(title="City Zoo", suggestions=QUESTIONS, **kiosk)
        page = chromium(made.url, size=sizes[size], reduced_motion="reduce", **more or {})
        expect(page.locator("#attract")).to_be_visible()
        if begun:
            page.locator("#begin").click()
            expect(page.locator("#mic")).to_be_visible()
        return made, page

    return begin


def answered(made, page, expect):
    made.model.says = ANSWER
    page.locator("#suggestions button").first.click()
    expect(page.locator(".answer")).to_contain_text("penguins")


def test_attract(visit, look):
    _, page = visit(begun=False)
    look(page, "attract")


def test_welcome(visit, look):
    _, page = visit()
    look(page, "welcome")


def test_listening(visit, look, spoken, state):
    _, page = visit(more={"audio": spoken[0]})
    page.locator("#mic").click()
    state(page, "listening", "hearing")
    page.wait_for_timeout(1200)  # something is said
    look(page, "listening")


def test_the_last_seconds_of_a_question(visit, look, spoken, expect, state):
    _, page = visit(more={"audio": spoken[0]}, audio_s=8)
    page.locator("#mic").click()
    state(page, "listening", "hearing")
    expect(page.locator("#left")).to_be_visible()
    look(page, "ending", keep=False)


def test_thinking(visit, look, state):
    made, page = visit()
    made.model.gate.clear()
    page.locator("#suggestions button").first.click()
    state(page, "thinking", "answering")
    look(page, "thinking")


def test_answer(visit, look, expect):
    made, page = visit()
    answered(made, page, expect)
    look(page, "answer")


def test_answering(visit, look, state):
    made, page = visit()

    def chat(_messages, *, cancel, **_options):
        yield Piece("The penguins are ")
        while not cancel.wait(0.01):
            pass
        raise EdgeRuntimeError("cancelled", "cancelled")

    made.model._chat = chat
    page.locator("#suggestions button").first.click()
    state(page, "answering")
    look(page, "answering", keep=False)
    page.locator("#mic").click()
    state(page, "idle")
    look(page, "interrupted", keep=False)


def test_reading_aloud(visit, look, state):
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    made, page = visit(voice=True)
    made.model.says = ANSWER * 3
    page.locator("#suggestions button").first.click()
    state(page, "speaking")
    look(page, "speaking", keep=False)
    state(page, "speaking")


def test_waking_up(visit, look, expect):
    _, page = visit(begun=False, loaded=False)
    expect(page.locator("#away")).to_be_visible()
    look(page, "loading", keep=False)


def test_writing(visit, look, expect):
    _, page = visit(screen_keys=True)
    page.locator("#write").click()
    expect(page.locator("#keys")).to_be_visible()
    look(page, "writing")


def test_camera(visit, look, sign, expect):
    _, page = visit(more={"video": sign})
    page.locator("#camera").click()
    expect(page.locator("#camera-box")).to_be_visible()
    look(page, "camera")
    page.locator("#snap").click()
    expect(page.locator("#picture")).to_be_visible()
    look(page, "picture")


def test_error(visit, look, expect):
    made, page = visit()
    made.model.error = RuntimeError("no such thing")
    page.locator("#suggestions button").first.click()
    expect(page.locator("#notice")).to_be_visible()
    look(page, "error")


def test_away(visit, look, expect):
    made, page = visit()
    made.server.stop()
    expect(page.locator("#away")).to_be_visible()
    look(page, "away")


def test_still_there(visit, look, expect):
    made, page = visit(begun=False)
    page.clock.install()
    page.reload()
    page.locator("#begin").click()
    answered(made, page, expect)
    page.clock.fast_forward(91_000)
    expect(page.locator("#still")).to_be_visible()
    look(page, "still-there")


def test_key(chromium, box, size, sizes, look, expect, tmp_path):
    token = tmp_path / "token"
    token.write_text("sixteen-characters-and-more")
    page = chromium(box(http={"token_file": token}).url, size=sizes[size])
    expect(page.locator("#key")).to_be_visible()
    look(page, "key")


def test_dark(visit, look, expect):
    made, page = visit(accent="#ffb454", background="#14171f", text="#f2f0ea")
    answered(made, page, expect)
    look(page, "dark")


@pytest.mark.parametrize("language", ["de", "fr", "es", "zh"])
def test_no_language_is_too_long(visit, look, language):
    _, page = visit(language=language)
    look(page, language, keep=False)
