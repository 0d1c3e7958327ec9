"""The owner's page, in a real browser, over a real daemon."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser


def test_it_shows_how_the_box_is(chromium, daemon, expect, look, size, sizes):
    page = chromium(f"{daemon.url}/status", size=sizes[size])
    expect(page.locator("#model")).to_have_text("nano")
    expect(page.locator("#memory")).to_contain_text("planned")
    expect(page.locator("#broker")).to_have_text("Not connected")
    expect(page.locator("#errors")).to_contain_text("broker")
    expect(page.locator("figure").first).to_contain_text("Memory in use")
    page.evaluate(HIDE)
    look(page, "status", whole=True)


def test_it_asks_for_the_token(chromium, box, expect, look, size, sizes, tmp_path):
    token = tmp_path / "token"
    token.write_text("sixteen-characters-and-more")
    made = box(http={"token_file": token})
    made.server.site.status = lambda: {"trouble": "a loop hangs"}
    page = chromium(f"{made.url}/status", size=sizes[size])
    expect(page.locator("#key-text")).to_be_visible()
    look(page, "status-key", keep=False, whole=True)
    page.locator("#key-text").fill("sixteen-characters-and-more")
    page.keyboard.press("Enter")
    expect(page.locator("#health")).to_have_text("a loop hangs")
    look(page, "status-trouble", keep=False, whole=True)


# Pictures are of nobody's machine.
HIDE = "document.querySelector('#device').textContent = 'box-1'"
