from __future__ import annotations

import re

import pytest

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.kiosk.colours import contrast, mix, theme
from edge_runtime.settings import KioskSettings


def parsed(sheet):
    return {
        name: tuple(int(value[at : at + 2], 16) / 255 for at in (0, 2, 4))
        for name, value in re.findall(r"--([\w-]+):#([0-9a-f]{6});", sheet)
    }


def test_contrast_is_that_of_wcag():
    assert contrast((1, 1, 1), (0, 0, 0)) == pytest.approx(21)
    assert contrast((0x77 / 255,) * 3, (1, 1, 1)) == pytest.approx(4.48, abs=0.005)  # the guideline's own example


def test_a_mixture_has_both():
    assert mix((0, 0, 0), (1, 0.5, 0), 0.5) == (0.5, 0.25, 0)


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"accent": "#ffb454", "background": "#14171f", "text": "#f2f0ea"},
        {"accent": "#a3003c", "background": "#ffffff"},
    ],
)
def test_everything_can_be_read(chosen):
    colours = parsed(theme(KioskSettings(**chosen)))
    for text, ground in (
        ("text", "background"),
        ("text", "surface"),
        ("muted", "background"),
        ("muted", "surface"),
        ("on-accent", "accent"),
        ("accent", "background"),
        ("text", "accent-soft"),
    ):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["edge"], colours["background"]) >= 3


def test_dark_and_light_are_told_apart():
    assert "color-scheme:light" in theme(KioskSettings())
    assert "color-scheme:dark" in theme(KioskSettings(accent="#ffb454", background="#14171f", text="#f2f0ea"))


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"text": "#cccccc"}, "contrast of 1.5"),
        ({"accent": "#ffe000"}, "kiosk.accent on kiosk.background"),
        ({"accent": "red"}, "must be a colour such as"),
        ({"accent": "#fff;}body{"}, "must be a colour such as"),
    ],
)
def test_what_cannot_be_read_is_refused(chosen, says):
    with pytest.raises(EdgeRuntimeError, match=says):
        theme(KioskSettings(**chosen))
