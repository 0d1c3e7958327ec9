"""Text as masks: real fonts, seven-segment digits and a dot matrix, each with the boxes of its glyphs."""

from __future__ import annotations

import functools
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

try:
    from .image_words import CHARS
except ImportError:  # run from inside the folder, as on a machine without the repository
    from image_words import CHARS  # type: ignore[import-not-found, no-redef]


def _words(text: str) -> list[str]:
    return text.split()


TRAIN_FONTS = _words("""
DejaVuSans.ttf DejaVuSans-Bold.ttf DejaVuSerif-Bold.ttf DejaVuSansMono-Bold.ttf LiberationSans-Regular.ttf
LiberationSans-Bold.ttf LiberationSerif-Bold.ttf LiberationMono-Bold.ttf LiberationSansNarrow-Bold.ttf FreeSansBold.ttf
FreeMonoBold.ttf OpenSans-Bold.ttf OpenSans-Semibold.ttf OpenSans-CondBold.ttf Roboto-Regular.ttf Roboto-Bold.ttf
Roboto-Black.ttf RobotoCondensed-Bold.ttf
""")
HELDOUT_FONTS = ["Lato-Bold.ttf", "Lato-Regular.ttf"]
PACKAGES = "fonts-dejavu-core fonts-liberation fonts-freefont-ttf fonts-open-sans fonts-roboto-unhinted fonts-lato"
MIN_PITCH = 20.0
"""Least distance of neighbouring glyphs' centres in pixels: more than a patch, so that no two share one."""
# Columns of 5 x 7 dots, lowest bit at the top.
_DOTS = {
    "0": "3E4141413E", "1": "00427F4000", "2": "4261514946", "3": "2241494936", "4": "1814127F10", "5": "2745454539",
    "6": "3C4A494930", "7": "0171090503", "8": "3649494936", "9": "064949291E", "A": "7E1111117E", "B": "7F49494936",
    "C": "3E41414122", "D": "7F4141413E", "E": "7F49494941", "F": "7F09090901", "G": "3E4149497A", "H": "7F0808087F",
    "I": "00417F4100", "J": "2040413F01", "K": "7F08142241", "L": "7F40404040", "M": "7F020C027F", "N": "7F0408107F",
    "O": "3E4141413E", "P": "7F09090906", "Q": "3E4151215E", "R": "7F09192946", "S": "4649494931", "T": "01017F0101",
    "U": "3F4040403F", "V": "1F2040201F", "W": "3F4038403F", "X": "6314081463", "Y": "0708700807", "Z": "6151494543",
    ":": "0000360000", "$": "242A7F2A12",
}  # fmt: skip
# Segments a..g: top, upper right, lower right, bottom, lower left, upper left, middle.
_SEGMENTS = {
    "0": "abcdef", "1": "bc", "2": "abged", "3": "abgcd", "4": "fgbc", "5": "afgcd", "6": "afgedc", "7": "abc",
    "8": "abcdefg", "9": "abcdfg",
}  # fmt: skip


@dataclass(frozen=True)
class Glyph:
    """A character's box within its block, in pixels; `center` is the middle of its ink."""

    label: int
    x0: float
    x1: float
    center: float
    y0: float
    y1: float


@dataclass(frozen=True)
class Block:
    """A mask (PIL "L", drawn at the canvas's scale) of width x height final pixels, and what it shows."""

    mask: Image.Image
    width: float
    height: float
    glyphs: list[Glyph]


Maker: TypeAlias = "Callable[[str, float, int], Block]"
"""(line, height in pixels, scale) -> block. The height is the capitals' height."""


@functools.cache
def font_paths() -> dict[str, str]:
    """Font files by name, looked for in $NANO_FONTS and /usr/share/fonts.

    Raises:
        FileNotFoundError: a font is missing; says which, and the packages.
    """
    found: dict[str, str] = {}
    for root in ("/usr/share/fonts", os.environ.get("NANO_FONTS", "")):
        if root:
            found.update({path.name: str(path) for path in sorted(Path(root).rglob("*.ttf"))})
    wanted = TRAIN_FONTS + HELDOUT_FONTS
    missing = [name for name in wanted if name not in found]
    if missing:
        raise FileNotFoundError(f"missing fonts {', '.join(missing)}: set NANO_FONTS or apt-get install {PACKAGES}")
    return {name: found[name] for name in wanted}


@functools.lru_cache(4096)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of the lists at a size in pixels per em."""
    return ImageFont.truetype(font_paths()[name], size)


@functools.cache
def _cap_height(name: str) -> float:
    box = font(name, 200).getbbox("H")
    return (box[3] - box[1]) / 200


def _spread(centers: list[float], lefts: list[float]) -> list[float]:
    """Moves glyphs apart evenly until no two centres are nearer than MIN_PITCH."""
    nearest = min((b - a for a, b in itertools.pairwise(centers)), default=MIN_PITCH)
    extra = max(0.0, MIN_PITCH - nearest)
    return [left + index * extra for index, left in enumerate(lefts)]


def font_line(name: str, line: str, height: float, scale: int, tracking: float = 0.0) -> Block:
    """A line in a real font."""
    face = font(name, max(8, round(height * scale / _cap_height(name))))
    boxes = [face.getbbox(char) for char in line]
    ink = [(box[0] / scale, box[2] / scale) for box in boxes]
    lefts, x = [], 0.0
    for char in line:
        lefts.append(x)
        x += face.getlength(char) / scale + tracking
    lefts = _spread([left + (a + b) / 2 for left, (a, b) in zip(lefts, ink, strict=True)], lefts)
    left = lefts[0] + ink[0][0]
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    width = lefts[-1] + ink[-1][1] - left
    mask = Image.new("L", (round(width * scale) + 2, round(bottom - top) + 2))
    pen = ImageDraw.Draw(mask)
    for char, x in zip(line, lefts, strict=True):
        if char != " ":
            pen.text(((x - left) * scale, -top), char, font=face, fill=255)
    tall = (bottom - top) / scale
    glyphs = [
        Glyph(CHARS.index(char) + 1, x + a - left - 1, x + b - left + 1, x + (a + b) / 2 - left, 0, tall)
        for char, x, (a, b) in zip(line, lefts, ink, strict=True)
        if char != " "
    ]
    return Block(mask, mask.width / scale, mask.height / scale, glyphs)


def dot_line(line: str, height: float, scale: int, *, round_dots: bool = True, fullness: float = 0.8) -> Block:
    """A line of dots, as on an information panel."""
    dot = max(3.0, height / 7)
    pitch = 6 * dot
    mask = Image.new("L", (round((pitch * len(line) - dot) * scale) + 1, round(7 * dot * scale) + 1))
    pen = ImageDraw.Draw(mask)
    stamp = pen.ellipse if round_dots else pen.rectangle
    gap = dot * (1 - fullness) / 2
    glyphs = []
    for index, char in enumerate(line):
        if char == " ":
            continue
        left = index * pitch
        for column, bits in enumerate(bytes.fromhex(_DOTS[char])):
            for row in range(7):
                if bits >> row & 1:
                    x, y = left + column * dot + gap, row * dot + gap
                    size = dot - 2 * gap
                    stamp((x * scale, y * scale, (x + size) * scale, (y + size) * scale), fill=255)
        glyphs.append(Glyph(CHARS.index(char) + 1, left, left + 5 * dot, left + 2.5 * dot, 0, 7 * dot))
    return Block(mask, mask.width / scale, mask.height / scale, glyphs)


def _segment(name: str, w: float, h: float, t: float) -> list[tuple[float, float]]:
    """Corners of one segment of a digit w x h with strokes t wide."""
    g = t * 0.12
    flat = {"a": t / 2, "g": h / 2, "d": h - t / 2}
    if name in flat:
        y, a, b = flat[name], t / 2 + g, w - t / 2 - g
        k = t / 2
        return [(a, y), (a + k, y - k), (b - k, y - k), (b, y), (b - k, y + k), (a + k, y + k)]
    x = t / 2 if name in "ef" else w - t / 2
    a, b = (t / 2 + g, h / 2 - g) if name in "bf" else (h / 2 + g, h - t / 2 - g)
    k = t / 2
    return [(x, a), (x + k, a + k), (x + k, b - k), (x, b), (x - k, b - k), (x - k, a + k)]


def segment_line(
    line: str, height: float, scale: int, *, slant: float = 0.0, stroke: float = 0.16, ghost: int = 0
) -> Block:
    """A line of seven-segment digits and colons; ghost is the brightness of the segments that are off."""
    w, t = height * 0.54, height * stroke
    pitch = w + t * 1.1
    lean = slant * height
    glyphs: list[Glyph] = []
    places = []
    x = 0.0
    for char in line:
        wide = max(MIN_PITCH, t * 2) if char == ":" else w
        places.append((char, x, wide))
        x += wide + pitch - w
    width = x - (pitch - w) + lean
    mask = Image.new("L", (round(width * scale) + 1, round(height * scale) + 1))
    pen = ImageDraw.Draw(mask)

    def draw(points: list[tuple[float, float]], left: float, value: int) -> None:
        pen.polygon([((left + u + lean * (1 - v / height)) * scale, v * scale) for u, v in points], fill=value)

    for char, left, wide in places:
        if char == ":":
            for v in (height * 0.3, height * 0.7):
                a, b, k = wide / 2 - t / 2, wide / 2 + t / 2, t / 2
                draw([(a, v - k), (b, v - k), (b, v + k), (a, v + k)], left, 255)
        else:
            for name in sorted("abcdefg", key=lambda name: name in _SEGMENTS[char]):
                value = 255 if name in _SEGMENTS[char] else ghost
                if value:
                    draw(_segment(name, w, height, t), left, value)
        middle = left + wide / 2 + lean / 2
        glyphs.append(Glyph(CHARS.index(char) + 1, middle - wide / 2, middle + wide / 2, middle, 0, height))
    return Block(mask, mask.width / scale, mask.height / scale, glyphs)


def stack(blocks: list[Block], gap: float, scale: int) -> Block:
    """Lines above each other, centred."""
    width = max(block.width for block in blocks)
    height = sum(block.height for block in blocks) + gap * (len(blocks) - 1)
    mask = Image.new("L", (round(width * scale) + 1, round(height * scale) + 1))
    glyphs = []
    y = 0.0
    for block in blocks:
        x = (width - block.width) / 2
        mask.paste(block.mask, (round(x * scale), round(y * scale)))
        glyphs += [Glyph(g.label, g.x0 + x, g.x1 + x, g.center + x, g.y0 + y, g.y1 + y) for g in block.glyphs]
        y += block.height + gap
    return Block(mask, width, height, glyphs)


def fit(maker: Maker, lines: list[str], height: float, room: tuple[float, float], scale: int) -> Block:
    """The lines at the wished height of capitals, or smaller until they fit into the room (width, height)."""
    for _ in range(6):
        blocks = [maker(line, height, scale) for line in lines]
        block = blocks[0] if len(blocks) == 1 else stack(blocks, height * 0.45, scale)
        ratio = min(room[0] / block.width, room[1] / block.height)
        if ratio >= 1:
            break
        height *= min(ratio, 0.98)
    return block


def random_font(rng: random.Random, *, heldout: bool) -> str:
    """A font's name; a third of the held-out texts use a font that training never sees."""
    return rng.choice(HELDOUT_FONTS if heldout and rng.random() < 1 / 3 else TRAIN_FONTS)
