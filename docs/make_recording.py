"""Runs a command in a terminal of its own and draws what it showed as an SVG: the recording in the README.

    python docs/make_recording.py docs/demo.svg            # edge-runtime demo
    python docs/make_recording.py out.svg -- ls --color    # any other command

The drawing is animated as the run was: each line appears when it was printed, and the last picture stays.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from fcntl import ioctl
from html import escape
from pathlib import Path

COLUMNS = 88
CHARACTER_PX = 8.4
LINE_PX = 20
MARGIN_PX = 18
# Still lines are shown for this long at most, so that the reader does not wait for what the machine waited for.
LONGEST_PAUSE_S = 1.5
COLOURS = {"": "#d8dee9", "1": "#ffffff", "31": "#ff7b72", "32": "#7ee787"}


@dataclass(frozen=True)
class Line:
    """A line of output and when it was whole, in seconds from the start."""

    text: str
    at: float


def record(command: list[str]) -> tuple[list[Line], int]:
    """Runs `command` in a pseudo-terminal; its lines and its exit status."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    started = time.monotonic()
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    lines: list[Line] = []
    pending = ""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # Linux's way to say that the other side is closed
            data = b""
        if not data:
            break
        *whole, pending = (pending + data.decode(errors="replace")).replace("\r\n", "\n").split("\n")
        lines += [Line(text, time.monotonic() - started) for text in whole]
    os.close(ours)
    return lines + ([Line(pending, time.monotonic() - started)] if pending else []), process.wait()


def paced(lines: list[Line]) -> list[Line]:
    """The lines with long pauses cut."""
    result: list[Line] = []
    clock = previous = 0.0
    for line in lines:
        clock += min(line.at - previous, LONGEST_PAUSE_S)
        previous = line.at
        result.append(Line(line.text, clock))
    return result


def spans(text: str) -> str:
    """A line's colours as SVG spans; other escape sequences are dropped."""
    parts = re.split(r"\x1b\[([0-9;]*)m", text)
    drawn = []
    for code, part in zip(["", *parts[1::2]], parts[::2], strict=True):
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part)
        style = ' font-weight="bold"' if code == "1" else ""
        if plain:
            drawn.append(f'<tspan fill="{COLOURS.get(code, COLOURS[""])}"{style}>{escape(plain)}</tspan>')
    return "".join(drawn)


def draw(prompt: str, lines: list[Line]) -> str:
    """The SVG."""
    shown = [Line(f"\x1b[1m$ {prompt}\x1b[0m", 0.0), *paced(lines)]
    width = round(COLUMNS * CHARACTER_PX + 2 * MARGIN_PX)
    height = len(shown) * LINE_PX + 2 * MARGIN_PX
    rows = [
        f'<text x="{MARGIN_PX}" y="{MARGIN_PX + (index + 0.75) * LINE_PX:g}" style="animation-delay:{line.at:.2f}s">'
        f"{spans(line.text)}</text>"
        for index, line in enumerate(shown)
        if line.text
    ]
    # `both` hides a line until its moment; where animation is switched off everything simply stands there.
    style = (
        "text{font:14px ui-monospace,Menlo,Consolas,monospace;white-space:pre;animation:show 1ms both}"
        "@keyframes show{from{opacity:0}to{opacity:1}}"
        "@media(prefers-reduced-motion:reduce){text{animation:none}}"
    )
    size = f'viewBox="0 0 {width} {height}" width="{width}"'
    label = f'role="img" aria-label="Recording of {escape(prompt)}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" {size} {label}>',
            f"<style>{style}</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#161b22"/>',
            *rows,
            "</svg>",
            "",
        ]
    )


def main() -> int:
    """The command line; the status is that of the recorded command."""
    parser = argparse.ArgumentParser(description="Draws a command's run as an SVG.")
    parser.add_argument("svg", type=Path)
    parser.add_argument("--prompt", help="what stands after the $ (default: make demo, or the command)")
    parser.epilog = "After -- comes the command; left out, it is edge-runtime demo."
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    own, command = words[:cut], words[cut + 1 :]
    args = parser.parse_args(own)
    prompt = args.prompt or (shlex.join(command) if command else "make demo")
    lines, status = record(command or [sys.executable, "-m", "edge_runtime", "demo"])
    if status:
        print("\n".join(line.text for line in lines), file=sys.stderr)
        print(f"{prompt} failed ({status}): nothing is drawn", file=sys.stderr)
        return status
    args.svg.write_text(draw(prompt, lines), encoding="utf-8")
    print(f"{args.svg}: {len(lines)} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
