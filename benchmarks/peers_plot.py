"""The picture of `benchmarks.peers`: tokens a second while reading and while writing, by the length of the prompt."""

from __future__ import annotations

import math
import statistics
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 960, 420
PANEL, TOP, LEFTS = (400, 270), 84, (64, 540)
COLORS = ("#0b6e99", "#d9622b", "#3a9d5d")
TITLES = {"prefill": "Reading the prompt, tokens/s", "decode": "Writing after it, tokens/s"}

_STYLE = """text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Arial, sans-serif; fill: #333; }
.title { font-size: 13px; font-weight: 600; } .label { font-size: 12px; font-weight: 600; }
.tick { font-size: 11px; fill: #666; } .grid { stroke: #e4e4e4; }"""


def draw(result: dict[str, Any]) -> str:
    """The whole picture as SVG, from what `benchmarks.peers` writes."""
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        f'<style>{_STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>',
    ]
    for number, (name, color) in enumerate(zip(result["rows"], COLORS, strict=False)):
        at = LEFTS[0] + 200 * number
        body.append(f'<rect x="{at}" y="24" width="12" height="12" fill="{color}"/>')
        body.append(f'<text class="label" x="{at + 18}" y="34">{escape(name)}</text>')
    for (figure, title), left in zip(TITLES.items(), LEFTS, strict=True):
        body += _panel(result["rows"], figure, title, left)
    return "\n".join([*body, "</svg>", ""])


def _panel(rows: dict[str, list[dict[str, Any]]], figure: str, title: str, left: float) -> list[str]:
    lines = {name: _line(runs, figure) for name, runs in rows.items()}
    lengths = sorted({x for line in lines.values() for x, _ in line})
    top = 1.1 * max(y for line in lines.values() for _, y in line)
    width, height = PANEL
    span = math.log2(lengths[-1] / lengths[0]) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + 20 + (width - 40) * math.log2(x / lengths[0]) / span, TOP + height * (1 - y / top)

    out = [f'<text class="title" x="{left}" y="{TOP - 14}">{escape(title)}</text>']
    step = 10 ** math.floor(math.log10(top / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if top / (factor * step) <= 6)
    for count in range(int(top / step) + 1):
        y = place(lengths[0], count * step)[1]
        out.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{count * step:g}</text>')
    for length in lengths:
        x = place(length, 0)[0]
        out.append(f'<text class="tick" x="{x:.1f}" y="{TOP + height + 18}" text-anchor="middle">{length}</text>')
    middle = left + width / 2
    out.append(
        f'<text class="tick" x="{middle}" y="{TOP + height + 38}" text-anchor="middle">tokens of the prompt</text>'
    )
    for line, color in zip(lines.values(), COLORS, strict=False):
        points = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>' for x, y in points]
    return out


def _line(runs: list[dict[str, Any]], figure: str) -> list[tuple[int, float]]:
    """Medians by length of the prompt; the first run only warms up."""
    counted = runs[1:] or runs
    return [(int(n), statistics.median(run["prompts"][n][figure] for run in counted)) for n in counted[0]["prompts"]]
