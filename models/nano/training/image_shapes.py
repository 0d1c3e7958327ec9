"""Pictures of coloured shapes: how many, which colour, which shape, where, and whether there is one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

try:
    from . import image_words as words
    from .image_canvas import RGB, Canvas, Point, rectangle
except ImportError:  # run from inside the folder, as on a machine without the repository
    import image_words as words  # type: ignore[import-not-found, no-redef]
    from image_canvas import RGB, Canvas, Point, rectangle  # type: ignore[import-not-found, no-redef]

COLORS, PALETTE, SHAPES = words.COLORS, words.PALETTE, words.SHAPES
Question = tuple[str, str, str]
MOST = 8
_MIN_RADIUS = 25.0
# Shapes reach at most this far from their centre, in radii.
_REACH = 1.2
# How often a count of none or one is kept.
_FEW_SHARE = 0.35
# On each of these some colours would not stand out: they are left out there.
BACKGROUNDS: list[RGB] = [
    (236, 236, 236), (244, 238, 220), (205, 220, 234), (178, 178, 178), (212, 230, 208), (92, 98, 104), (58, 58, 74),
    (150, 160, 170), (30, 32, 36),
]  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One shape in the picture; x, y before the tilt."""

    color: str
    shape: str
    x: float
    y: float
    radius: float


def jitter(rng: random.Random, color: RGB, amount: int) -> RGB:
    """The colour, a little different."""
    red, green, blue = (max(0, min(255, part + rng.randint(-amount, amount))) for part in color)
    return red, green, blue


def lightness(color: RGB) -> float:
    """How bright a colour looks, 0..255."""
    return color[0] * 0.3 + color[1] * 0.59 + color[2] * 0.11


def distance(a: RGB, b: RGB) -> float:
    """How different two colours look, 0..765; brightness counts more than hue."""
    return abs(lightness(a) - lightness(b)) + 0.5 * sum(abs(x - y) for x, y in zip(a, b, strict=True))


def usable_colors(background: RGB) -> list[str]:
    """Colours that stand out from the background."""
    return [name for name, value in PALETTE.items() if distance(value, background) > 130]


_RARITY = {color: 1 / sum(color in usable_colors(background) for background in BACKGROUNDS) for color in COLORS}


def _pick(rng: random.Random, colors: list[str]) -> str:
    """One of the colours; those that few backgrounds allow are taken more often, so that all are seen equally."""
    return rng.choices(colors, [_RARITY[color] for color in colors])[0]


def _shade(rng: random.Random, name: str) -> RGB:
    """The colour of that name, a little different; white and black stay without a tint."""
    if name in {"white", "black"}:
        level = PALETTE[name][0] + rng.randint(-9, 5)
        return level, level, level
    return jitter(rng, PALETTE[name], 9)


def draw_shape(canvas: Canvas, rng: random.Random, thing: Thing) -> None:
    """Draws the shape, turned a little, and labels it."""
    color = _shade(rng, thing.color)
    labels = {"shape": SHAPES.index(thing.shape) + 1, "color": COLORS.index(thing.color) + 1}
    turn = math.radians(rng.uniform(-4, 4))
    cos, sin, r = math.cos(turn), math.sin(turn), thing.radius

    def put(corners: list[Point]) -> None:
        turned = [(thing.x + r * (x * cos - y * sin), thing.y + r * (x * sin + y * cos)) for x, y in corners]
        canvas.polygon(turned, color, **labels)

    if thing.shape == "circle":
        canvas.circle(thing.x, thing.y, r, color, **labels)
    elif thing.shape == "square":
        put(rectangle(-0.84, -0.84, 0.84, 0.84))
    elif thing.shape == "triangle":
        put([(0, -1.1), (1.05, 0.78), (-1.05, 0.78)])
    elif thing.shape == "diamond":
        put([(0, -1.15), (0.68, 0), (0, 1.15), (-0.68, 0)])
    elif thing.shape == "cross":
        k = 0.34
        arm = [(-k, -1.0), (k, -1.0), (k, -k), (1.0, -k), (1.0, k), (k, k)]
        put(arm + [(-x, -y) for x, y in arm])
    else:
        spikes = [1.15 if k % 2 == 0 else 0.5 for k in range(10)]
        put([(s * math.sin(k * math.pi / 5), -s * math.cos(k * math.pi / 5)) for k, s in enumerate(spikes)])
    canvas.mark_center(thing.x, thing.y)


def position(canvas: Canvas, x: float, y: float) -> str | None:
    """Where the point lies in the picture, or None when a person might doubt it."""
    x, y = canvas.place(x, y)
    u, v = x / canvas.width * 3, y / canvas.height * 3
    column, row = min(2, max(0, int(u))), min(2, max(0, int(v)))
    if abs(u - column - 0.5) > 0.3 or abs(v - row - 0.5) > 0.3:
        return None
    return words.POSITIONS[row * 3 + column]


def _in_cells(rng: random.Random, canvas: Canvas, count: int) -> list[tuple[float, float, float]]:
    """(x, y, radius) near the middles of a 3 x 3 grid."""
    w, h = canvas.width / 3, canvas.height / 3
    spots = []
    for cell in rng.sample(range(9), count):
        radius = rng.uniform(_MIN_RADIUS, min(w, h) * 0.4)
        free_x, free_y = w / 2 - radius * _REACH, h / 2 - radius * _REACH
        x = (cell % 3 + 0.5) * w + rng.uniform(-1, 1) * min(free_x, w * 0.18)
        y = (cell // 3 + 0.5) * h + rng.uniform(-1, 1) * min(free_y, h * 0.18)
        spots.append((x, y, radius))
    return spots


def _anywhere(rng: random.Random, canvas: Canvas, count: int) -> list[tuple[float, float, float]]:
    """(x, y, radius) scattered without touching; falls back to the grid when there is no room left."""
    spots: list[tuple[float, float, float]] = []
    largest = 75.0 if count < 4 else 52.0
    for _ in range(60):
        if len(spots) == count:
            return spots
        radius = rng.uniform(_MIN_RADIUS, largest)
        edge = radius * _REACH + 14
        x, y = rng.uniform(edge, canvas.width - edge), rng.uniform(edge, canvas.height - edge)
        if all(math.hypot(x - a, y - b) > (radius + r) * _REACH + 4 for a, b, r in spots):
            spots.append((x, y, radius))
    return spots if len(spots) == count else _in_cells(rng, canvas, count)


def _plan(rng: random.Random, colors: list[str]) -> tuple[list[tuple[str, str]], str, str]:
    """(colour, shape) of everything in the picture, and the colour and shape to ask for."""
    color, shape = _pick(rng, colors), rng.choice(SHAPES)
    kind = rng.random()
    if kind < 0.16:
        return [(color, shape)], color, shape
    if kind < 0.4:
        # Pictures for "how many shapes": every total equally often.
        few = [_pick(rng, colors) for _ in range(rng.randint(1, 4))]
        kinds = rng.sample(SHAPES, rng.randint(1, 4))
        return [(rng.choice(few), rng.choice(kinds)) for _ in range(rng.randint(1, MOST))], color, shape
    wanted = rng.randint(0, 6)
    others = rng.randint(1 if wanted == 0 else 0, min(4, MOST - wanted))
    by_color = rng.random() < 0.5
    pairs = [(color if by_color else _pick(rng, colors), shape) for _ in range(wanted)]
    while len(pairs) < wanted + others:
        other_color, other_shape = _pick(rng, colors), rng.choice(SHAPES)
        # Near misses: the right shape in another colour, the right colour in another shape.
        if by_color and rng.random() < 0.5:
            other_color, other_shape = (color, other_shape) if rng.random() < 0.5 else (other_color, shape)
        if other_shape != shape or (by_color and other_color != color):
            pairs.append((other_color, other_shape))
    return pairs, color, shape


def _counts(rng: random.Random, things: list[Thing], color: str, shape: str) -> list[Question]:
    both = sum(t.color == color and t.shape == shape for t in things)
    of_shape = sum(t.shape == shape for t in things)
    of_color = sum(t.color == color for t in things)
    found = [
        (words.ask(rng, words.COUNT_COLOR_SHAPE, color, shape), both),
        (words.ask(rng, words.COUNT_SHAPE, color, shape), of_shape),
        (words.ask(rng, words.COUNT_COLOR, color, shape), of_color),
        (words.ask(rng, words.COUNT_ALL), len(things)),
    ]
    # None and one come by themselves: mostly ask for more, so that the answers are balanced.
    found.sort(key=lambda pair: rng.random() ** (1.0 if pair[1] > 1 else 5.0), reverse=True)
    kept = [pair for pair in found[:2] if pair[1] > 1 or rng.random() < _FEW_SHARE]
    return [(question, str(count), "count") for question, count in kept or found[:1]]


def _exists(rng: random.Random, things: list[Thing]) -> Question:
    yes = rng.random() < 0.5
    thing = rng.choice(things)
    if rng.random() < 0.25:
        absent = [shape for shape in SHAPES if all(t.shape != shape for t in things)]
        if yes or absent:
            shape = thing.shape if yes else rng.choice(absent)
            return words.ask(rng, words.EXISTS_SHAPE, shape=shape), "Yes." if yes else "No.", "exists"
    pair = (thing.color, thing.shape)
    present = {(t.color, t.shape) for t in things}
    while not yes and pair in present:
        # Half of the wrong guesses are near: one of the two is right.
        other = (rng.choice(COLORS), rng.choice(SHAPES))
        pair = other if rng.random() < 0.5 else rng.choice([(thing.color, other[1]), (other[0], thing.shape)])
    return words.ask(rng, words.EXISTS_COLOR_SHAPE, *pair), "Yes." if yes else "No.", "exists"


def _about_one(rng: random.Random, canvas: Canvas, things: list[Thing]) -> list[Question]:
    """Colour, shape and place of things that the question names without doubt."""
    found: list[Question] = []
    shapes, colors = [t.shape for t in things], [t.color for t in things]
    pairs = list(zip(colors, shapes, strict=True))
    for thing in rng.sample(things, len(things)):
        only_shape = shapes.count(thing.shape) == 1
        if only_shape:
            found.append((words.ask(rng, words.COLOR_OF, shape=thing.shape), words.sentence(thing.color), "color"))
        if colors.count(thing.color) == 1:
            found.append((words.ask(rng, words.SHAPE_OF, thing.color), words.sentence(thing.shape), "shape"))
        place = position(canvas, thing.x, thing.y)
        if place and pairs.count((thing.color, thing.shape)) == 1:
            templates = words.WHERE_COLOR_SHAPE if not only_shape or rng.random() < 0.5 else words.WHERE_SHAPE
            found.append((words.ask(rng, templates, thing.color, thing.shape), place, "position"))
    if len(things) == 1:
        found.append((words.ask(rng, words.COLOR_ONLY), words.sentence(things[0].color), "color"))
        found.append((words.ask(rng, words.SHAPE_ONLY), words.sentence(things[0].shape), "shape"))
    return found


def _at_most(found: list[Question], each: int) -> list[Question]:
    """No more than so many questions of a group."""
    kept: list[Question] = []
    for question in found:
        if sum(group == question[2] for _, _, group in kept) < each:
            kept.append(question)
    return kept


def draw_shapes(canvas: Canvas, rng: random.Random) -> tuple[list[Question], dict[str, int]]:
    """Draws 1 to 8 shapes. Returns the questions and the scalar labels."""
    pairs, color, shape = _plan(rng, usable_colors(canvas.background))
    spots = (_in_cells if rng.random() < 0.65 else _anywhere)(rng, canvas, len(pairs))
    rng.shuffle(pairs)
    things = [Thing(*pair, *spot) for pair, spot in zip(pairs, spots, strict=True)]
    for thing in things:
        draw_shape(canvas, rng, thing)
    counts = _counts(rng, things, color, shape)
    questions = [*counts, _exists(rng, things), *_at_most(_about_one(rng, canvas, things), 2)]
    rng.shuffle(questions)
    return questions, {"count": len(things)}
