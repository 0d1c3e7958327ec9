"""Pictures of things a box is asked about: a dial, a tank, doors, windows and lamps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

try:
    from . import image_words as words
    from .image_canvas import RGB, Canvas, Point, rectangle, rounded
    from .image_shapes import Question, jitter
    from .image_text import Block, font, random_font
except ImportError:  # run from inside the folder, as on a machine without the repository
    import image_words as words  # type: ignore[import-not-found, no-redef]
    from image_canvas import RGB, Canvas, Point, rectangle, rounded  # type: ignore[import-not-found, no-redef]
    from image_shapes import Question, jitter  # type: ignore[import-not-found, no-redef]
    from image_text import Block, font, random_font  # type: ignore[import-not-found, no-redef]

BACKGROUNDS: list[RGB] = [
    (235, 235, 235), (244, 238, 220), (200, 215, 230), (180, 180, 180), (205, 225, 200), (92, 98, 104), (225, 205, 190),
]  # fmt: skip
Box = tuple[float, float, float, float]
_PART = {name: index + 1 for index, name in enumerate(words.PARTS)}
_DARK: RGB = (28, 28, 32)


def _label(text: str, face: str, size: float, scale: int) -> Block:
    """Small print, not to be asked about."""
    drawn = font(face, max(8, round(size * scale)))
    left, top, right, bottom = drawn.getbbox(text)
    mask = Image.new("L", (round(right - left) + 2, round(bottom - top) + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), text, font=drawn, fill=255)
    return Block(mask, mask.width / scale, mask.height / scale, [])


def draw_dial(canvas: Canvas, rng: random.Random, *, heldout: bool) -> tuple[list[Question], dict[str, int]]:
    """A round gauge from 0 (lower left) over the top to 100 (lower right), in steps of 5."""
    value = rng.randrange(0, 101, 5)
    radius = rng.uniform(0.36, 0.45) * min(canvas.width, canvas.height)
    free_x, free_y = canvas.width / 2 - radius - 14, canvas.height / 2 - radius - 14
    x = canvas.width / 2 + rng.uniform(-1, 1) * free_x
    y = canvas.height / 2 + rng.uniform(-1, 1) * free_y
    dark = rng.random() < 0.2
    face, ink = (jitter(rng, (34, 36, 44), 8), (240, 240, 240)) if dark else (jitter(rng, (248, 248, 246), 6), _DARK)
    rim = rng.choice([ink, (120, 125, 130), (60, 90, 140), (140, 40, 40)])
    canvas.circle(x, y, radius, rim)
    canvas.circle(x, y, radius - rng.uniform(4, 9), face, other=_PART["dial face"])

    def at(reading: float, part: float) -> Point:
        angle = math.radians(225 - 2.7 * reading)
        return x + radius * part * math.cos(angle), y - radius * part * math.sin(angle)

    name, every = random_font(rng, heldout=heldout), rng.choice([20, 50, 10])
    for mark in range(0, 101, 5):
        long = mark % 10 == 0
        canvas.line(at(mark, 0.8 if long else 0.85), at(mark, 0.92), ink, 3.5 if long else 2)
        if mark % every == 0:
            text = _label(str(mark), name, radius * (0.15 if every == 10 else 0.18), canvas.scale)
            u, v = at(mark, 0.66)
            canvas.text(text, u - text.width / 2, v - text.height / 2, ink, labelled=False)
    reds = [(205, 24, 24), (225, 90, 20)]
    color = rng.choice([*reds, (240, 240, 240)] if dark else [*reds, _DARK, (24, 60, 180)])
    width, reach = rng.uniform(6, 11), rng.uniform(0.7, 0.8)
    canvas.line((x, y), at(value, reach - 0.05), color, 2, other=_PART["dial needle"])
    a, b = at(value, reach), at(value, -0.12)
    dx, dy = (a[1] - y) / radius / reach * width / 2, (x - a[0]) / radius / reach * width / 2
    tip = 0.3
    canvas.polygon(
        [
            (b[0] + dx, b[1] + dy),
            (a[0] + dx * tip, a[1] + dy * tip),
            (a[0] - dx * tip, a[1] - dy * tip),
            (b[0] - dx, b[1] - dy),
        ],
        color,
    )
    canvas.circle(x, y, width * rng.uniform(0.9, 1.4), color)
    canvas.mark_part(x, y, _PART["dial hub"])
    canvas.mark_part(*at(value, reach), _PART["dial tip"])
    return [(rng.choice(words.DIAL), str(value), "dial")], {"dial": value // 5}


def draw_tank(canvas: Canvas, rng: random.Random, *, heldout: bool) -> tuple[list[Question], dict[str, int]]:
    """An upright tank, full to a tenth."""
    level = rng.randint(0, 10)
    tw, th = rng.uniform(0.26, 0.48) * canvas.width, rng.uniform(0.64, 0.84) * canvas.height
    x = rng.uniform(20, canvas.width - tw - 66)
    y = rng.uniform(16, canvas.height - th - 16)
    # The least of these reads as liquid and stays apart from the glass.
    fill = jitter(rng, rng.choice([(40, 105, 220), (35, 150, 60), (225, 120, 25), (150, 60, 30), (110, 50, 160)]), 12)
    glass = jitter(rng, rng.choice([(250, 250, 250), (232, 240, 246)]), 5)
    radius = rng.choice([0.0, rng.uniform(8, 20)])
    shape = rounded(x, y, x + tw, y + th, radius) if radius else rectangle(x, y, x + tw, y + th)
    canvas.polygon(shape, glass, other=_PART["tank empty"])
    surface = y + th * (1 - level / 10)
    if level:
        # Clipping the outline at the surface keeps round corners round.
        below = [(u, max(v, surface)) for u, v in shape]
        canvas.polygon(below, fill, other=_PART["tank fill"])
    canvas.outline(shape, _DARK, rng.uniform(4, 6))
    name = random_font(rng, heldout=heldout)
    for mark in range(11):
        v = y + th * (1 - mark / 10)
        canvas.line((x + tw + 3, v), (x + tw + (16 if mark % 5 == 0 else 10), v), _DARK, 3)
        if mark % 5 == 0:
            text = _label(str(mark * 10), name, 17, canvas.scale)
            canvas.text(text, x + tw + 20, v - text.height / 2, _DARK, labelled=False)
    return [(rng.choice(words.TANK), f"{level * 10} percent.", "tank")], {"tank": level}


def _knob(canvas: Canvas, x: float, y: float, size: float) -> None:
    canvas.circle(x, y, size + 1.5, (60, 50, 30))
    canvas.circle(x, y, size, (235, 205, 70))


def _draw_door(canvas: Canvas, rng: random.Random, box: Box, state: str) -> None:
    left, top, right, bottom = box
    dh = (bottom - top) * rng.uniform(0.82, 0.97)
    dw = min((right - left) * 0.62, dh * rng.uniform(0.42, 0.55))
    x = left + (right - left - dw) / 2 + rng.uniform(-0.12, 0.12) * (right - left)
    y = bottom - dh
    color = jitter(rng, rng.choice([(142, 92, 44), (62, 92, 150), (150, 44, 44), (70, 124, 74), (196, 160, 110)]), 14)
    shade = jitter(rng, (color[0] * 3 // 4, color[1] * 3 // 4, color[2] * 3 // 4), 4)
    frame = rng.choice([(72, 56, 44), (240, 240, 236), (110, 110, 114)])
    canvas.polygon(rectangle(x - 9, y - 9, x + dw + 9, y + dh), frame)
    mirrored = rng.random() < 0.5
    hinge, free = (x + dw, x) if mirrored else (x, x + dw)
    into = -1 if mirrored else 1
    if state == "closed":
        canvas.polygon(rectangle(x, y, x + dw, y + dh), color, other=_PART["door closed"])
        panels = rng.choice([0, 1, 2])
        for k in range(panels):
            p, q = y + dh * (0.08 + 0.46 * k), y + dh * (0.46 * (k + 1) if panels == 2 else 0.9)
            canvas.outline(rectangle(x + dw * 0.16, p, x + dw * 0.84, q), shade, 3)
        _knob(canvas, free - into * dw * 0.1, y + dh * 0.53, 6)
        return
    room = jitter(rng, (26, 26, 32), 8) if rng.random() < 0.5 else jitter(rng, (252, 240, 190), 6)
    canvas.polygon(rectangle(x, y, x + dw, y + dh), room, other=_PART["door opening"])
    reach = dw * rng.uniform(0.25, 0.42) * into
    drop = dh * 0.06
    leaf = [(hinge, y), (hinge + reach, y + drop), (hinge + reach, y + dh + drop * 0.7), (hinge, y + dh)]
    canvas.polygon(leaf, shade, other=_PART["door leaf"])
    canvas.outline(leaf, (shade[0] // 2, shade[1] // 2, shade[2] // 2), 2)
    _knob(canvas, hinge + reach * 0.8, y + dh * 0.56, 5)


def _pane(canvas: Canvas, points: list[Point], glass: RGB, frame: RGB, part: str) -> None:
    """A casement of four corners: glass, bars and frame."""
    canvas.polygon(points, glass, other=_PART[part])
    a, b, c, d = points

    def mid(p: Point, q: Point) -> Point:
        return (p[0] + q[0]) / 2, (p[1] + q[1]) / 2

    canvas.line(mid(a, d), mid(b, c), frame, 4)
    canvas.outline(points, frame, 7)


def _draw_window(canvas: Canvas, rng: random.Random, box: Box, state: str) -> None:
    left, top, right, bottom = box
    w, h = (right - left) * rng.uniform(0.58, 0.68), (bottom - top) * rng.uniform(0.45, 0.65)
    # Wide enough for the open casements at the sides, and never taller than a door would be.
    h = min(h, w * 1.3)
    x = left + (right - left - w) / 2
    y = top + rng.uniform(0.2, 0.8) * (bottom - top - h)
    frame: RGB = rng.choice([(250, 250, 250), (120, 76, 40), (60, 64, 70)])
    glass = jitter(rng, (150, 200, 236), 12)
    border: RGB = (70, 70, 74)
    canvas.polygon(rectangle(x - 7, y - 7, x + w + 7, y + h + 7), border)
    middle = x + w / 2
    if state == "closed":
        _pane(canvas, rectangle(x, y, middle, y + h), glass, frame, "window closed")
        _pane(canvas, rectangle(middle, y, x + w, y + h), glass, frame, "window closed")
    else:
        night = rng.random() < 0.5
        beyond = jitter(rng, (24, 30, 52) if night else (120, 176, 92), 8)
        canvas.polygon(rectangle(x, y, x + w, y + h), beyond, other=_PART["window opening"])
        reach, drop = w * rng.uniform(0.2, 0.25), h * 0.1
        for hinge, side in ((x, -1), (x + w, 1)):
            far = hinge + side * reach
            _pane(
                canvas, [(hinge, y), (far, y - drop), (far, y + h + drop), (hinge, y + h)], glass, frame, "window leaf"
            )
    canvas.polygon(rectangle(x - 14, y + h + 7, x + w + 14, y + h + 17), border)


def _draw_lamp(canvas: Canvas, rng: random.Random, box: Box, state: str) -> None:
    left, top, right, bottom = box
    on = state == "on"
    r = rng.uniform(0.2, 0.25) * min(right - left, bottom - top)
    x = (left + right) / 2 + rng.uniform(-1, 1) * max(0.0, (right - left) / 2 - 1.95 * r)
    y = (top + bottom) / 2 + rng.uniform(-1, 1) * max(0.0, (bottom - top) / 2 - 1.95 * r)
    if on:
        # Lines this thin label the patches they cross.
        for k in range(12):
            a = math.pi * (k + 0.5) / 6
            if abs(math.cos(a)) < 0.4 and math.sin(a) > 0:
                continue
            start = x + r * 1.22 * math.cos(a), y + r * 1.22 * math.sin(a)
            end = x + r * 1.75 * math.cos(a), y + r * 1.75 * math.sin(a)
            canvas.line(start, end, (170, 120, 0), 8)
            canvas.line(start, end, (255, 214, 40), 5, other=_PART["rays"])
    glass = jitter(rng, (255, 236, 96), 8) if on else jitter(rng, (112, 116, 124), 10)
    canvas.polygon(rectangle(x - r * 0.42, y + r * 0.8, x + r * 0.42, y + r * 1.55), (66, 66, 72))
    canvas.circle(x, y, r + 3, (50, 50, 54))
    canvas.circle(x, y, r, glass, other=_PART["lamp on" if on else "lamp off"])
    for k in range(2):
        v = y + r * (1.15 + 0.22 * k)
        canvas.line((x - r * 0.42, v), (x + r * 0.42, v), (150, 150, 156), 2)


_THINGS: dict[str, Callable[[Canvas, random.Random, Box, str], None]] = {
    "door": _draw_door,
    "window": _draw_window,
    "lamp": _draw_lamp,
}


def _ask_state(rng: random.Random, thing: str, state: str) -> Question:
    if rng.random() < 0.5:
        return words.EITHER[thing], words.sentence(state), thing
    guess = rng.choice(words.STATES[thing])
    question = rng.choice(words.IS_STATE).format(thing=thing, state=guess)
    return question, "Yes." if guess == state else "No.", thing


def draw_states(canvas: Canvas, rng: random.Random) -> tuple[list[Question], dict[str, int]]:
    """One thing, or two side by side, each in one of its two states."""
    w, h = canvas.width, canvas.height
    things = rng.sample(sorted(_THINGS), rng.choice([1, 1, 2]))
    if len(things) == 1:
        side = rng.uniform(0.7, 0.95) * w
        x = rng.uniform(14, w - side - 4) if side < w - 18 else 14.0
        boxes = [(x, 26.0, min(x + side, w - 14.0), h - 26.0)]
    else:
        boxes = [(14.0, 26.0, w / 2 - 6, h - 26.0), (w / 2 + 6, 26.0, w - 14.0, h - 26.0)]
    questions = []
    for thing, box in zip(things, boxes, strict=True):
        state = rng.choice(words.STATES[thing])
        _THINGS[thing](canvas, rng, box, state)
        questions.append(_ask_state(rng, thing, state))
    return questions, {}
