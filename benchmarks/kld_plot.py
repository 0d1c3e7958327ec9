"""Shows what `benchmarks.gguf_kld` found: `python -m benchmarks.kld_plot RESULT.json PLOT.svg`.

Draws mean KL divergence (logarithmic, with its standard error) against bits per weight, one panel for each checkpoint,
and prints the figures as a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 960, 480
PANEL = (400, 320)
TOP, LEFTS = 92, (64, 540)
MAX_BITS = 10.0
"""Formats above are nearly exact; their points would only squeeze the others."""
TITLES = {
    "built-in": "The built-in model, trained for four bits",
    "off-grid": "Its twin, not trained for four bits",
}
COLORS = {"edge-runtime": "#0b6e99", "llama.cpp": "#d9622b"}
MARKS = {"edge-runtime": "circle", "llama.cpp": "square"}
_LETTER = 7.4  # px, the mean width of a letter of the labels


@dataclass(frozen=True)
class Scale:
    """From values to pixels: `low` at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of `value`."""
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


@dataclass
class Panel:
    """One checkpoint's points in their frame."""

    title: str
    rows: list[dict[str, Any]]
    left: float
    x: Scale
    y: Scale
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)

    def draw(self) -> list[str]:
        """SVG elements."""
        width, height = PANEL
        out = [f'<text class="title" x="{self.left}" y="{TOP - 16}">{escape(self.title)}</text>']
        for bits in range(math.ceil(self.x.low), math.floor(self.x.high) + 1):
            at = self.x(bits)
            out.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{TOP + height}"/>')
            out.append(f'<text class="tick" x="{at:.1f}" y="{TOP + height + 18}" text-anchor="middle">{bits}</text>')
        for power in range(math.ceil(self.y.low), math.floor(self.y.high) + 1):
            at = self.y(power)
            out.append(f'<line class="grid" x1="{self.left}" x2="{self.left + width}" y1="{at:.1f}" y2="{at:.1f}"/>')
            label = f'10<tspan dy="-5" font-size="9">{"−" if power < 0 else ""}{abs(power)}</tspan>'
            out.append(f'<text class="tick" x="{self.left - 8}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
        place = f'x="{self.left + width / 2}" y="{TOP + height + 40}" text-anchor="middle"'
        out.append(f'<text class="axis" {place}>bits per weight</text>')
        places = [(row, self.x(row["bits_per_weight"]), self.y(math.log10(_mean(row)))) for row in self.rows]
        for maker, color in COLORS.items():
            points = sorted((x, y) for row, x, y in places if row["maker"] == maker)
            out += _frontier(points, color)
        self.boxes = [(x - 7, y - 7, x + 7, y + 7) for _, x, y in places]
        for row, x, y in places:
            out += self._point(row, x, y)
        for row, x, y in places:
            out.append(self._label(row, x, y))
        return out

    def _point(self, row: dict[str, Any], x: float, y: float) -> list[str]:
        color, mean, error = COLORS[row["maker"]], _mean(row), row["kld"]["overall"]["error"]
        upper = self.y(math.log10(mean + error))
        lower = self.y(max(self.y.low, math.log10(max(mean - error, mean / 10))))
        bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{upper:.1f}" y2="{lower:.1f}" stroke="{color}" stroke-width="1.5"/>'
        tip = f"<title>{escape(row['name'])}: {row['bits_per_weight']:.2f} bits, {mean:.2e}</title>"
        if MARKS[row["maker"]] == "circle":
            return [bar, f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{color}">{tip}</circle>']
        return [bar, f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{color}">{tip}</rect>']

    def _label(self, row: dict[str, Any], x: float, y: float) -> str:
        """The name beside its point, where it covers nothing that is there already."""
        width = _LETTER * len(row["name"])
        spots = [(x + 10, y + 4), (x - 10 - width, y + 4), (x - width / 2, y - 12), (x - width / 2, y + 20)]
        spots += [(x + 8, y - 9), (x + 8, y + 17), (x - 8 - width, y - 9), (x - 8 - width, y + 17)]
        left, base = next((spot for spot in spots if self._free(*spot, width)), spots[0])
        self.boxes.append((left, base - 10, left + width, base + 3))
        weight = "600" if row["maker"] == "edge-runtime" else "400"
        style = f'style="fill: {COLORS[row["maker"]]}; font-weight: {weight}"'
        return f'<text class="label" x="{left:.1f}" y="{base:.1f}" {style}>{escape(row["name"])}</text>'

    def _free(self, left: float, base: float, width: float) -> bool:
        right, top, bottom = left + width, base - 10, base + 3
        inside = self.left < left and right < self.left + PANEL[0] and top > TOP and bottom < TOP + PANEL[1]
        return inside and all(right < a or left > c or bottom < b or top > d for a, b, c, d in self.boxes)


def draw(result: dict[str, Any]) -> str:
    """The whole picture as SVG."""
    shown = {
        label: [row for row in result[label]["rows"] if row["bits_per_weight"] <= MAX_BITS and _mean(row) > 0]
        for label in TITLES
    }
    every = [row for rows in shown.values() for row in rows]
    bits = [row["bits_per_weight"] for row in every]
    powers = [math.log10(_mean(row)) for row in every]
    body = []
    for (label, rows), left in zip(shown.items(), LEFTS, strict=True):
        x = Scale(min(bits) - 0.4, max(bits) + 0.4, left, left + PANEL[0])
        y = Scale(math.floor(min(powers)), math.ceil(max(powers) + 0.1), TOP + PANEL[1], TOP)
        body += Panel(TITLES[label], rows, left, x, y).draw()
    return "\n".join([_HEAD, *_legend(), *body, "</svg>", ""])


def _frontier(points: list[tuple[float, float]], color: str) -> list[str]:
    """A line through the points that none to their left undercuts."""
    best: list[tuple[float, float]] = []
    for x, y in points:
        if not best or y > best[-1][1]:
            best.append((x, y))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in best)
    return [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2" stroke-opacity="0.3"/>']


def table(result: dict[str, Any]) -> str:
    """The figures of both checkpoints side by side, smallest formats first."""
    head = "| {} | bits | mean KLD | 99 % | 99.9 % | same top token |"
    lines = []
    for label, title in TITLES.items():
        lines += [head.format(title), "|---|---:|---:|---:|---:|---:|"]
        for row in sorted(result[label]["rows"], key=lambda row: float(row["bits_per_weight"])):
            name = f"**{row['name']}**" if row["maker"] == "edge-runtime" else f"{row['maker']} {row['name']}"
            found = row["kld"]["overall"]
            figures = f"{found['mean']:.2g} ± {found['error']:.1g} | {found['p99']:.2g} | {found['p999']:.2g}"
            lines.append(f"| {name} | {row['bits_per_weight']:.2f} | {figures} | {found['top1']:.2%} |")
        lines.append("")
    return "\n".join(lines)


def _legend() -> list[str]:
    heading = "What rounding costs: mean KL divergence from the unrounded model (nats)"
    out = [f'<text class="heading" x="{LEFTS[0]}" y="30">{heading}</text>']
    for left, maker in ((756, "edge-runtime"), (872, "llama.cpp")):
        color = COLORS[maker]
        mark = f'<circle cx="{left}" cy="26" r="6" fill="{color}"/>'
        if MARKS[maker] == "square":
            mark = f'<rect x="{left - 4.5}" y="21.5" width="9" height="9" fill="{color}"/>'
        style = f'style="fill: {color}; font-weight: 600"'
        out += [mark, f'<text class="label" x="{left + 12}" y="30" {style}>{maker}</text>']
    return out


def _mean(row: dict[str, Any]) -> float:
    return float(row["kld"]["overall"]["mean"])


_HEAD = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">
<style>
text {{ font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Arial, sans-serif; fill: #333; }}
.heading {{ font-size: 14px; font-weight: 600; }}
.title {{ font-size: 13px; font-weight: 600; }}
.label {{ font-size: 11.5px; }}
.tick {{ font-size: 11px; fill: #666; }}
.axis {{ font-size: 12px; fill: #666; }}
.grid {{ stroke: #e4e4e4; stroke-width: 1; }}
</style>
<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="The result of benchmarks.gguf_kld as SVG, and as a table.")
    parser.add_argument("result", type=Path)
    parser.add_argument("plot", type=Path)
    args = parser.parse_args()
    result = json.loads(args.result.read_text(encoding="utf-8"))
    args.plot.write_text(draw(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
