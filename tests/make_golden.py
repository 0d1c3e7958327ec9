"""Records what transformers answers, so that the default tests need no torch to check exactness.

    python tests/make_golden.py [CHECKPOINT] [OUT]

Writes OUT (default tests/engine/golden): golden.json with prompt ids, greedy ids and the five largest first-step logits
of a few prompts of every kind, and their media as small PNG and FLAC files. Run it again whenever the built-in
checkpoint changes. Needs the `oracle` extra; about 20 s.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from tests.engine import prompts  # noqa: E402
from tests.engine.oracle import Oracle  # noqa: E402
from tests.engine.runs import MAX_TOKENS  # noqa: E402

PER_KIND = 8
MAX_BYTES = 1_500_000
SIDE = 220  # pixels: keeps pictures small, and makes the processor enlarge them


def shrink(item: dict[str, Any]) -> dict[str, Any]:
    """An image as few pixels and colours, a sound as 16-bit samples: what a small file gives back exactly."""
    if item["type"] == "image":
        image = item["image"].copy()
        image.thumbnail((SIDE, SIDE))
        return {"type": "image", "image": image.quantize(32, dither=Image.Dither.NONE).convert("RGB")}
    if item["type"] == "audio":
        return {"type": "audio", "audio": (np.rint(item["audio"] * 32767) / 32768).astype(np.float32)}
    return item


def save(item: dict[str, Any], folder: Path, stem: str) -> dict[str, Any]:
    """Writes an item's media beside golden.json and names the file in their place."""
    if item["type"] == "image":
        image = item["image"]
        colours = len(image.getcolors(1 << 20))
        image.quantize(colours, dither=Image.Dither.NONE).save(folder / f"{stem}.png", optimize=True)
        assert np.array_equal(np.asarray(Image.open(folder / f"{stem}.png").convert("RGB")), np.asarray(image))
        return {"type": "image", "image": f"{stem}.png"}
    if item["type"] == "audio":
        soundfile.write(folder / f"{stem}.flac", item["audio"], 16_000, subtype="PCM_16")
        assert np.array_equal(soundfile.read(folder / f"{stem}.flac", dtype="float32")[0], item["audio"])
        return {"type": "audio", "audio": f"{stem}.flac"}
    return item


def main(checkpoint: Path, out: Path) -> None:
    """Records everything; refuses to leave more than `MAX_BYTES` behind."""
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    oracle = Oracle(checkpoint)
    records = []
    for kind in prompts.MAKERS:
        for number, case in enumerate(prompts.cases(kind, PER_KIND, seed=2)):
            messages, media = [], 0
            for message in case.messages:
                if isinstance(message.get("content"), list):
                    content = [shrink(item) for item in message["content"]]
                    message["content"] = content
                    saved = []
                    for item in content:
                        saved.append(save(item, out, f"{kind}-{number}-{media}"))
                        media += item["type"] != "text"
                    messages.append({**message, "content": saved})
                else:
                    messages.append(message)
            prompt, greedy, logits = oracle.answer(case, MAX_TOKENS)
            best = np.argsort(-logits)[:5]
            records.append(
                {
                    "kind": kind,
                    "messages": messages,
                    "tools": case.tools,
                    "think": case.think,
                    "prompt": prompt,
                    "greedy": greedy,
                    "text": oracle.tokenizer.decode(greedy),
                    "top5": [[int(i), round(float(logits[i]), 5)] for i in best],
                }
            )
            print(kind, number, repr(records[-1]["text"]))
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    with (out / "golden.json").open("w", encoding="utf-8") as file:
        lines = ",\n".join(json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records)
        file.write(f'{{"weights": "{weights}", "cases": [\n{lines}\n]}}\n')
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{len(records)} prompts, {size:,} bytes in {out}")
    if size > MAX_BYTES:
        sys.exit(f"that is more than {MAX_BYTES:,} bytes")


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    defaults = [ROOT / "models" / "nano" / "checkpoint", ROOT / "tests" / "engine" / "golden"]
    main(*(arguments + defaults[len(arguments) :]))
