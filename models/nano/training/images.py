"""Pictures of a kiosk or a home with questions, answers and dense labels, drawn with Pillow.

Run: `python images.py OUT --processes 16 --start 0 --shards 64 --per-shard 1000` writes
OUT/0000.npz, OUT/0000.json and so on.
The same start, shard and per-shard numbers give the same pictures, whatever the number of processes.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import multiprocessing
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Sequence

try:
    from . import image_devices, image_shapes, image_signs
    from .image_canvas import LABELS, PATCH, RGB, Canvas, rectangle
    from .image_text import font_paths
    from .image_words import CHARS, COLORS, PARTS, QUESTION_GROUPS, QUESTIONS, SHAPES
except ImportError:  # run from inside the folder, as on a machine without the repository
    import image_devices  # type: ignore[import-not-found, no-redef]
    import image_shapes  # type: ignore[import-not-found, no-redef]
    import image_signs  # type: ignore[import-not-found, no-redef]
    from image_canvas import LABELS, PATCH, RGB, Canvas, rectangle  # type: ignore[import-not-found, no-redef]
    from image_text import font_paths  # type: ignore[import-not-found, no-redef]
    from image_words import CHARS, COLORS, PARTS, QUESTION_GROUPS, QUESTIONS, SHAPES  # type: ignore[import-not-found, no-redef]

__all__ = [
    "CHARS",
    "COLORS",
    "LABELS",
    "PARTS",
    "QUESTIONS",
    "QUESTION_GROUPS",
    "SCALARS",
    "SHAPES",
    "Sample",
    "render",
]

SCALARS = ("dial", "tank", "count")
MAX_PATCHES = 576
# Multiples of 48 within 70 soft tokens: the image processor does not resize them.
SIZES = [(384, 384), (384, 384), (432, 336), (336, 432)]
_NOISE_SIZE = 1 << 21


@dataclass
class Sample:
    """A picture and what is known about it."""

    image: Image.Image
    """RGB."""
    grid: tuple[int, int]
    """(width, height) in patches."""
    questions: list[tuple[str, str, str]]
    """(question, answer, group) each."""
    labels: dict[str, np.ndarray]
    """uint8 [grid height, grid width] for each of LABELS; classes as in `image_words`, 0 is none."""
    scalars: dict[str, int] = field(default_factory=dict)
    """dial: value / 5 (0..20), tank: level / 10 (0..10), count: shapes (1..8); -1 where there is none."""


@functools.cache
def _noise_bank() -> np.ndarray:
    """Standard normal noise times 16, int16: drawing it afresh would take longer than the picture."""
    noise: np.ndarray = np.rint(np.random.default_rng(7).normal(0, 16, _NOISE_SIZE)).astype(np.int16)
    return noise


def _shaded(rng: random.Random, pixels: np.ndarray) -> np.ndarray:
    """Light that falls off towards one side."""
    height, width = pixels.shape[:2]
    strength, turn = rng.uniform(10, 34), rng.random()
    across = np.linspace(0, strength * turn * rng.choice([-1, 1]), width)
    down = np.linspace(0, strength * (1 - turn) * rng.choice([-1, 1]), height)
    light = across[None, :] + down[:, None]
    light = (256 - (light - light.min())).astype(np.uint16)
    shaded: np.ndarray = ((pixels * light[:, :, None]) >> 8).astype(np.uint8)
    return shaded


def _tone_table(rng: random.Random) -> list[int]:
    """Brightness, contrast, gamma and a slight colour cast, as a table for Image.point."""
    levels = np.arange(256) / 255
    brightness, contrast, gamma = rng.uniform(0.9, 1.12), rng.uniform(0.86, 1.1), rng.uniform(0.86, 1.14)
    toned = ((levels**gamma - 0.5) * contrast + 0.5) * brightness
    casts = [toned * rng.uniform(0.96, 1.04) for _ in range(3)]
    return [int(value) for cast in casts for value in np.clip(np.rint(cast * 255), 0, 255)]


def _degrade(rng: random.Random, image: Image.Image) -> Image.Image:
    """What a camera does to a picture: softness, tone, noise, compression."""
    if rng.random() < 0.15:
        return image
    size = image.size
    if rng.random() < 0.35:
        factor = rng.uniform(0.7, 1.0)
        small = image.resize((round(size[0] * factor), round(size[1] * factor)), Image.Resampling.BILINEAR)
        image = small.resize(size, Image.Resampling.BILINEAR)
    elif rng.random() < 0.4:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.1)))
    if rng.random() < 0.7:
        image = image.point(_tone_table(rng))
    if rng.random() < 0.25:
        image = Image.fromarray(_shaded(rng, np.asarray(image, np.uint16)))
    if rng.random() < 0.55:
        pixels = np.asarray(image)
        start = rng.randrange(_NOISE_SIZE - pixels.size)
        # The bank holds sixteenths; sigma is 1 to 9 levels.
        grain = (_noise_bank()[start : start + pixels.size] * np.int16(rng.randint(4, 36))) >> 6
        image = Image.fromarray(np.clip(pixels + grain.reshape(pixels.shape), 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=rng.randint(40, 95))
        image = Image.open(packed).convert("RGB")
    return image


def _backdrop(canvas: Canvas, rng: random.Random) -> None:
    """Sometimes a floor or a strip, hardly different from the wall."""
    if rng.random() < 0.7:
        return
    other: RGB = image_shapes.jitter(rng, canvas.background, 14)
    split = rng.uniform(0.3, 0.9)
    far = 60.0
    if rng.random() < 0.7:
        canvas.polygon(rectangle(-far, canvas.height * split, canvas.width + far, canvas.height + far), other)
    else:
        canvas.polygon(rectangle(canvas.width * split, -far, canvas.width + far, canvas.height + far), other)


def render(rng: random.Random, *, heldout: bool = False) -> Sample:
    """One picture.

    Args:
        rng: decides everything; the same state gives the same picture.
        heldout: texts in a font that training never sees (a third of them), and no random letters.
    """
    x = rng.random()
    module = image_signs if x < 0.35 else image_shapes if x < 0.7 else image_devices
    background = image_shapes.jitter(rng, rng.choice(module.BACKGROUNDS), 8)
    tilt = rng.uniform(-4, 4) if rng.random() < 0.5 else 0.0
    canvas = Canvas(rng.choice(SIZES), background, tilt, rng.choice([1, 2]))
    _backdrop(canvas, rng)
    if x < 0.35:
        questions, scalars = image_signs.draw_reading(canvas, rng, heldout=heldout)
    elif x < 0.7:
        questions, scalars = image_shapes.draw_shapes(canvas, rng)
    elif x < 0.8:
        questions, scalars = image_devices.draw_dial(canvas, rng, heldout=heldout)
    elif x < 0.88:
        questions, scalars = image_devices.draw_tank(canvas, rng, heldout=heldout)
    else:
        questions, scalars = image_devices.draw_states(canvas, rng)
    image = _degrade(rng, canvas.image())
    return Sample(image, canvas.grid, questions, canvas.labels(), dict.fromkeys(SCALARS, -1) | scalars)


def patches(image: Image.Image) -> np.ndarray:
    """uint8 [patches, 768]: row by row; inside a patch y, x, channel, as the image processor lays them out."""
    pixels = np.asarray(image)
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    return pixels.reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)


def pack(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Arrays of a shard.

    Returns:
        patches uint8 [n, 576, 768], grid uint8 [n, 2], each of LABELS uint8 [n, 576] (row by row over the picture's own
        grid, 0 after its end), each of SCALARS int16 [n].
    """
    count = len(samples)
    arrays: dict[str, np.ndarray] = {"patches": np.zeros((count, MAX_PATCHES, PATCH * PATCH * 3), np.uint8)}
    arrays["grid"] = np.array([sample.grid for sample in samples], np.uint8).reshape(count, 2)
    for name in LABELS:
        arrays[name] = np.zeros((count, MAX_PATCHES), np.uint8)
    for name in SCALARS:
        arrays[name] = np.array([sample.scalars[name] for sample in samples], np.int16)
    for index, sample in enumerate(samples):
        rows = patches(sample.image)
        arrays["patches"][index, : len(rows)] = rows
        for name in LABELS:
            arrays[name][index, : len(rows)] = sample.labels[name].reshape(-1)
    return arrays


def sample_at(shard: int, index: int, *, heldout: bool = False) -> Sample:
    """The sample of that place in the shards, the same on every machine."""
    return render(random.Random(f"{'heldout' if heldout else 'train'}/{shard}/{index}"), heldout=heldout)


def write_shard(out: Path, shard: int, count: int, *, heldout: bool = False) -> None:
    """Writes OUT/<shard>.npz, then OUT/<shard>.json with the questions of each picture: the shard is complete."""
    samples = [sample_at(shard, index, heldout=heldout) for index in range(count)]
    arrays, table = out / f"{shard:04}.npz", out / f"{shard:04}.json"
    partial = out / f"{shard:04}.partial"
    with partial.open("wb") as file:
        np.savez(file, **pack(samples))  # type: ignore[arg-type]
    partial.rename(arrays)
    partial.write_text(json.dumps([sample.questions for sample in samples]), encoding="utf-8")
    partial.rename(table)


def _write(shard: int, out: Path, count: int, heldout: bool) -> int:
    write_shard(out, shard, count, heldout=heldout)
    return shard


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Writes shards of generated pictures.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first shard")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--per-shard", type=int, default=1000)
    parser.add_argument("--heldout", action="store_true", help="other pictures, with the fonts kept out of training")
    args = parser.parse_args()
    try:
        font_paths()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    job = functools.partial(_write, out=args.out, count=args.per_shard, heldout=args.heldout)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for shard in pool.imap_unordered(job, range(args.start, args.start + args.shards)):
            print(f"shard {shard:04} after {time.monotonic() - began:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
