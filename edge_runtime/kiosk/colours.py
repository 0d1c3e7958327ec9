"""The page's colours: all of them from the three that the owner may choose, each legible on what it stands on.

Contrast is that of WCAG 2.2: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from edge_runtime.settings import KioskSettings

LEGIBLE = 4.5
"""Least contrast of text (WCAG 2.2 AA)."""
_HEX = re.compile(r"#[0-9a-fA-F]{6}")

Colour = tuple[float, float, float]


def theme(settings: KioskSettings) -> str:
    """A style sheet that sets the page's colours.

    Raises:
        EdgeRuntimeError: One is no colour, or text could not be read on the background.
    """
    chosen = {name: _parsed(name, getattr(settings, name)) for name in ("accent", "background", "text")}
    accent, background, text = chosen["accent"], chosen["background"], chosen["text"]
    for name in ("text", "accent"):
        if (found := contrast(chosen[name], background)) < LEGIBLE:
            raise EdgeRuntimeError(
                f"kiosk.{name} on kiosk.background has a contrast of {found:.1f}, which not everybody can read: "
                f"{LEGIBLE} is needed"
            )
    light = contrast(background, (1, 1, 1)) < contrast(background, (0, 0, 0))
    surface = mix(background, (1, 1, 1), 0.75 if light else 0.06)
    names = {
        "accent": accent,
        "on-accent": max(((1, 1, 1), (0, 0, 0)), key=lambda colour: contrast(colour, accent)),
        "accent-deep": mix(accent, (0, 0, 0), 0.28),
        "accent-soft": mix(background, accent, 0.12),
        "background": background,
        "surface": surface,
        "text": text,
        "muted": _muted(text, background, surface),
        "line": mix(background, text, 0.16),
        "edge": mix(background, text, 0.55),  # what a control is known by: 3 to 1
    }
    scheme = "light" if light else "dark"
    values = "".join(f"--{name}:{_written(colour)};" for name, colour in names.items())
    return f":root{{color-scheme:{scheme};{values}}}\n"


def contrast(one: Colour, other: Colour) -> float:
    """From 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def mix(one: Colour, other: Colour, part: float) -> Colour:
    """`one` with `part` of the `other`."""
    red, green, blue = (a + (b - a) * part for a, b in zip(one, other, strict=True))
    return red, green, blue


def _muted(text: Colour, *grounds: Colour) -> Colour:
    """The palest mixture that can still be read on all the grounds."""
    for percent in range(40, 0, -5):
        colour = mix(text, grounds[0], percent / 100)
        if all(contrast(colour, ground) >= LEGIBLE + 0.3 for ground in grounds):
            return colour
    return text


def _parsed(name: str, text: str) -> Colour:
    if not _HEX.fullmatch(text):
        raise EdgeRuntimeError(f"kiosk.{name} must be a colour such as #0b6e5f, not {text!r}")
    red, green, blue = (int(text[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def _written(colour: Colour) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _luminance(colour: Colour) -> float:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
