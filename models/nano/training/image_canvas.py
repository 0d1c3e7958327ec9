"""A canvas that draws a picture and its label maps with the same geometry.

All coordinates are floats in pixels of the finished picture. The picture may be drawn at twice the size (smooth edges);
the label maps are drawn at full size and read at the patch centres.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .image_text import Block

PATCH = 16
RGB = tuple[int, int, int]
Point = tuple[float, float]
_DRAWN = ("shape", "color", "other")
LABELS = ("char", "char_start", "shape", "color", "center", "other")


def regular(center: Point, radius: float, corners: int, turn: float = 0.0) -> list[Point]:
    """Corners of a regular polygon, the first at the top when turn (radians) is 0."""
    steps = (turn + 2 * math.pi * k / corners for k in range(corners))
    return [(center[0] + radius * math.sin(a), center[1] - radius * math.cos(a)) for a in steps]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    """Corners of an upright rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def rounded(x0: float, y0: float, x1: float, y1: float, radius: float) -> list[Point]:
    """Outline of a rectangle with rounded corners."""
    corners = (
        (x1 - radius, y0 + radius),
        (x1 - radius, y1 - radius),
        (x0 + radius, y1 - radius),
        (x0 + radius, y0 + radius),
    )
    points: list[Point] = []
    for quarter, (x, y) in enumerate(corners):
        for step in range(6):
            a = (quarter + step / 5) * math.pi / 2
            points.append((x + radius * math.sin(a), y - radius * math.cos(a)))
    return points


class Canvas:
    """One picture being drawn.

    Args:
        size: (width, height) in pixels, multiples of 48.
        background: its colour.
        tilt: degrees by which everything drawn is turned about the middle, clockwise.
        scale: 1 or 2, how much larger the picture is drawn.
    """

    def __init__(self, size: tuple[int, int], background: RGB, tilt: float = 0.0, scale: int = 1) -> None:
        self.width, self.height = size
        self.grid = (size[0] // PATCH, size[1] // PATCH)
        self.background = background
        self.scale = scale
        self._tilt = tilt
        self._cos, self._sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        self._image = Image.new("RGB", (size[0] * scale, size[1] * scale), background)
        self._draw = ImageDraw.Draw(self._image)
        self._maps = {name: Image.new("L", size) for name in _DRAWN}
        self._pens = {name: ImageDraw.Draw(image) for name, image in self._maps.items()}
        self._cells = {name: np.zeros(self.grid[::-1], np.uint8) for name in ("char", "char_start", "center")}
        self._marks: list[tuple[int, int, int]] = []

    def place(self, x: float, y: float) -> Point:
        """Where a point comes to lie after the tilt."""
        dx, dy = x - self.width / 2, y - self.height / 2
        return self.width / 2 + dx * self._cos - dy * self._sin, self.height / 2 + dx * self._sin + dy * self._cos

    def polygon(self, points: Sequence[Point], paint: RGB, **labels: int) -> None:
        """A filled polygon; labels are class ids for the maps shape, color and other."""
        placed = [self.place(x, y) for x, y in points]
        self._draw.polygon([(x * self.scale, y * self.scale) for x, y in placed], fill=paint)
        for name, value in labels.items():
            self._pens[name].polygon(placed, fill=value)

    def circle(self, x: float, y: float, radius: float, paint: RGB, **labels: int) -> None:
        """A filled circle."""
        x, y = self.place(x, y)
        k = self.scale
        self._draw.ellipse(((x - radius) * k, (y - radius) * k, (x + radius) * k, (y + radius) * k), fill=paint)
        for name, value in labels.items():
            self._pens[name].ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)

    def line(self, start: Point, end: Point, paint: RGB, width: float, **labels: int) -> None:
        """A straight line. On the label maps it is at least a patch wide, so that every patch it crosses knows."""
        a, b = self.place(*start), self.place(*end)
        k = self.scale
        self._draw.line((a[0] * k, a[1] * k, b[0] * k, b[1] * k), fill=paint, width=max(1, round(width * k)))
        for name, value in labels.items():
            self._pens[name].line((*a, *b), fill=value, width=max(PATCH, round(width)))

    def outline(self, points: Sequence[Point], paint: RGB, width: float) -> None:
        """A closed line through the points, with no labels."""
        placed = [self.place(x, y) for x, y in points]
        scaled = [(x * self.scale, y * self.scale) for x, y in (*placed, *placed[:2])]
        self._draw.line(scaled, fill=paint, width=max(1, round(width * self.scale)), joint="curve")

    def _cell(self, x: float, y: float) -> tuple[int, int]:
        x, y = self.place(x, y)
        return min(self.grid[1] - 1, max(0, int(y // PATCH))), min(self.grid[0] - 1, max(0, int(x // PATCH)))

    def mark_center(self, x: float, y: float) -> None:
        """Marks the patch that holds an object's centre."""
        self._cells["center"][self._cell(x, y)] = 1

    def mark_part(self, x: float, y: float, part: int) -> None:
        """Labels the one patch that holds the point, whatever was drawn there."""
        self._marks.append((*self._cell(x, y), part))

    def text(self, block: Block, x: float, y: float, paint: RGB, *, labelled: bool = True) -> None:
        """A block of text with its top left corner at x, y (before the tilt)."""
        middle = self.place(x + block.width / 2, y + block.height / 2)
        mask = block.mask
        if self._tilt:
            mask = mask.rotate(-self._tilt, Image.Resampling.BICUBIC, expand=True)
        left, top = middle[0] * self.scale - mask.width / 2, middle[1] * self.scale - mask.height / 2
        self._image.paste(paint, (round(left), round(top)), mask)
        if labelled:
            self._label_text(block, x, y)

    def _label_text(self, block: Block, x: float, y: float) -> None:
        columns, rows = self.grid
        px = (np.arange(columns) + 0.5) * PATCH - self.width / 2
        py = (np.arange(rows)[:, None] + 0.5) * PATCH - self.height / 2
        u = px * self._cos + py * self._sin + self.width / 2 - x
        v = py * self._cos - px * self._sin + self.height / 2 - y
        for glyph in block.glyphs:
            inside = (u >= glyph.x0) & (u < glyph.x1) & (v >= glyph.y0) & (v < glyph.y1)
            self._cells["char"][inside] = glyph.label
        for glyph in block.glyphs:
            cell = self._cell(x + glyph.center, y + (glyph.y0 + glyph.y1) / 2)
            # A glyph narrower than a patch may hold no patch centre: this patch at least is its own.
            self._cells["char"][cell] = glyph.label
            self._cells["char_start"][cell] = 1

    def image(self) -> Image.Image:
        """The picture at its final size."""
        return self._image if self.scale == 1 else self._image.reduce(self.scale)

    def labels(self) -> dict[str, np.ndarray]:
        """The label maps, uint8 [grid height, grid width] each."""
        half = PATCH // 2
        maps = {name: np.asarray(image)[half::PATCH, half::PATCH].copy() for name, image in self._maps.items()}
        for row, column, part in self._marks:
            maps["other"][row, column] = part
        maps.update(self._cells)
        return {name: maps[name] for name in LABELS}
