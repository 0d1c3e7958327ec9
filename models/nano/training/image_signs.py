"""Pictures with something to read: signs, displays, prices and clocks."""

from __future__ import annotations

import functools
import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

try:
    from . import image_words as words
    from .image_canvas import RGB, Canvas, rounded
    from .image_shapes import Question, distance, jitter, lightness
    from .image_text import Block, Maker, dot_line, fit, font_line, random_font, segment_line
except ImportError:  # run from inside the folder, as on a machine without the repository
    import image_words as words  # type: ignore[import-not-found, no-redef]
    from image_canvas import RGB, Canvas, rounded  # type: ignore[import-not-found, no-redef]
    from image_shapes import Question, distance, jitter, lightness  # type: ignore[import-not-found, no-redef]
    from image_text import Block, Maker, dot_line, fit, font_line, random_font, segment_line  # type: ignore[import-not-found, no-redef]

BACKGROUNDS: list[RGB] = [
    (236, 236, 236), (244, 238, 220), (200, 215, 230), (180, 180, 180), (205, 225, 200), (92, 98, 104), (58, 58, 74),
    (225, 205, 190), (120, 90, 70),
]  # fmt: skip
_PANELS: list[RGB] = [
    (20, 110, 60), (196, 28, 28), (30, 62, 142), (250, 250, 250), (28, 28, 30), (250, 218, 60), (235, 130, 30),
    (110, 45, 140), (225, 228, 232), (60, 130, 190),
]  # fmt: skip
_INKS: list[RGB] = [(255, 255, 255), (12, 12, 12), (255, 238, 100), (130, 10, 10), (10, 20, 120), (10, 80, 30)]
_GLOWS: list[RGB] = [(255, 60, 50), (70, 255, 90), (255, 180, 40), (90, 230, 255), (245, 250, 255)]
_RANDOM_SHARE = 0.13
"""Share of random letters among all texts in training; they keep the reader from guessing words."""


def _sign_lines(rng: random.Random, *, heldout: bool) -> tuple[list[str], bool]:
    """(lines, whether it is one word)."""
    x = rng.random()
    if not heldout and x < _RANDOM_SHARE / 0.6:
        return ["".join(rng.choices(string.ascii_uppercase, k=rng.randint(2, 7)))], False
    if x > 0.85:
        line = f"{rng.choice(words.NUMBERED)} {rng.randint(1, 999 if rng.random() < 0.3 else 30)}"
        if rng.random() < 0.3:
            line = rng.choice(words.PHRASES)
        return line.split() if rng.random() < 0.6 else [line], False
    return [rng.choice(words.SIGN_WORDS)], True


def _panel(canvas: Canvas, rng: random.Random, block: Block, x: float, y: float, color: RGB, margin: float) -> None:
    """The board behind a block at x, y, sometimes with a line around."""
    outer = (x - margin, y - margin, x + block.width + margin, y + block.height + margin)
    radius = rng.uniform(2, margin)
    edge = jitter(rng, rng.choice([(40, 40, 44), (240, 240, 240), (130, 130, 134)]), 8)
    if rng.random() < 0.4:
        canvas.polygon(rounded(outer[0] - 5, outer[1] - 5, outer[2] + 5, outer[3] + 5, radius + 4), edge)
    canvas.polygon(rounded(*outer, radius), color)


def _where(rng: random.Random, canvas: Canvas, block: Block, margin: float) -> tuple[float, float]:
    """Top left corner of the block, its board inside the picture even when tilted."""
    free_x = max(0.0, canvas.width - block.width - 2 * margin - 20)
    free_y = max(0.0, canvas.height - block.height - 2 * margin - 44)
    x = (canvas.width - block.width) / 2 + rng.uniform(-0.5, 0.5) * free_x
    y = (canvas.height - block.height) / 2 + rng.uniform(-0.5, 0.5) * free_y
    return x, y


def _room(canvas: Canvas, margin: float) -> tuple[float, float]:
    return canvas.width - 2 * margin - 20, (canvas.height - 2 * margin) * 0.7


def _ink(rng: random.Random, board: RGB) -> RGB:
    clear = [ink for ink in _INKS if distance(ink, board) > 240 and abs(lightness(ink) - lightness(board)) > 85]
    return rng.choice(clear or sorted(_INKS[:2], key=lambda ink: -distance(ink, board))[:1])


def _sign_maker(rng: random.Random, *, heldout: bool) -> Maker:
    name, tracking = random_font(rng, heldout=heldout), rng.choice([0, 0, 2, 4])
    return functools.partial(font_line, name, tracking=tracking)


def _draw_sign(canvas: Canvas, rng: random.Random, *, heldout: bool) -> list[Question]:
    lines, one_word = _sign_lines(rng, heldout=heldout)
    margin = rng.uniform(12, 22)
    maker = _sign_maker(rng, heldout=heldout)
    dots = rng.random() < 0.1
    if dots:
        maker = functools.partial(dot_line, round_dots=rng.random() < 0.7, fullness=rng.uniform(0.75, 1))
    block = fit(maker, lines, rng.uniform(32, 92), _room(canvas, margin), canvas.scale)
    x, y = _where(rng, canvas, block, margin)
    if dots:
        _panel(canvas, rng, block, x, y, jitter(rng, (20, 20, 22), 8), margin)
        canvas.text(block, x, y, rng.choice(_GLOWS))
    elif rng.random() < 0.7:
        board = jitter(rng, rng.choice(_PANELS), 14)
        _panel(canvas, rng, block, x, y, board, margin)
        canvas.text(block, x, y, _ink(rng, board))
    else:
        canvas.text(block, x, y, _ink(rng, canvas.background))
    templates = words.TEXT + words.WORD if one_word else words.TEXT
    return [(rng.choice(templates), " ".join(lines), "word")]


def _display_maker(rng: random.Random, ghost: int, *, heldout: bool) -> Maker:
    kind = rng.random()
    if kind < 0.45:
        slant, stroke = rng.choice([0.0, 0.0, 0.08, 0.14]), rng.uniform(0.13, 0.19)
        return functools.partial(segment_line, slant=slant, stroke=stroke, ghost=ghost)
    if kind < 0.6:
        return functools.partial(dot_line, round_dots=rng.random() < 0.7, fullness=rng.uniform(0.75, 1))
    return _sign_maker(rng, heldout=heldout)


def _draw_display(canvas: Canvas, rng: random.Random, *, heldout: bool) -> list[Question]:
    clock = rng.random() < 0.15
    text = "".join(rng.choices(string.digits, k=rng.randint(1, 5)))
    if clock:
        text = f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}"
    lit = rng.random() < 0.65
    board = jitter(rng, (20, 20, 24) if lit else rng.choice([(178, 196, 170), (200, 206, 210), (250, 250, 250)]), 8)
    color = rng.choice(_GLOWS) if lit else jitter(rng, (24, 28, 26), 10)
    margin = rng.uniform(14, 26)
    maker = _display_maker(rng, rng.choice([0, 0, 22]), heldout=heldout)
    block = fit(maker, [text], rng.uniform(40, 110), _room(canvas, margin), canvas.scale)
    x, y = _where(rng, canvas, block, margin)
    _panel(canvas, rng, block, x, y, board, margin)
    canvas.text(block, x, y, color)
    return [(rng.choice(words.TIME if clock else words.NUMBER), text, "digits")]


def _draw_price(canvas: Canvas, rng: random.Random, *, heldout: bool) -> list[Question]:
    text = f"${rng.randint(1, 99 if rng.random() < 0.7 else 999)}"
    margin = rng.uniform(14, 24)
    block = fit(_sign_maker(rng, heldout=heldout), [text], rng.uniform(40, 100), _room(canvas, margin), canvas.scale)
    x, y = _where(rng, canvas, block, margin)
    board = jitter(rng, rng.choice(_PANELS), 14)
    _panel(canvas, rng, block, x, y, board, margin)
    canvas.text(block, x, y, _ink(rng, board))
    return [(rng.choice(words.PRICE), text, "digits")]


def draw_reading(canvas: Canvas, rng: random.Random, *, heldout: bool) -> tuple[list[Question], dict[str, int]]:
    """A sign with words (60 %), a display with digits or a time (34 %) or a price (6 %)."""
    x = rng.random()
    draw = _draw_sign if x < 0.6 else _draw_display if x < 0.94 else _draw_price
    return draw(canvas, rng, heldout=heldout), {}
