"""Ten thousand turns: memory neither grows nor passes what was announced.

States of earlier prompts come and go within their budget, so what is compared is all but them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from edge_runtime import builtin

if TYPE_CHECKING:
    from pathlib import Path

TURNS = 10_000

# A process of its own, so that nothing else is measured.
SCRIPT = """
import json, random, sys
import numpy as np
import PIL.Image
from pathlib import Path
from edge_runtime.engine.onnx.engine import OnnxEngine
from edge_runtime.engine.onnx.session import give_back
from edge_runtime.engine.protocol import Request, Sampling
from edge_runtime.errors import EdgeRuntimeError

turns, folder = int(sys.argv[1]), sys.argv[2]
rng, noise = random.Random(1), np.random.default_rng(1)
words = "the museum opens at nine and closes when the lamp in the old tower is red or blue".split()

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def text(most):
    return " ".join(rng.choice(words) for _ in range(rng.randint(1, most)))

def content():
    items = []
    while rng.random() < 0.2:
        if rng.random() < 0.5:
            shape = (rng.randint(16, 300), rng.randint(16, 300), 3)
            items.append({"type": "image", "image": PIL.Image.fromarray(noise.integers(0, 255, shape, np.uint8))})
        else:
            sound = noise.normal(0, 0.1, rng.randint(400, 48_000)).astype(np.float32)
            items.append({"type": "audio", "audio": sound})
    return [*items, {"type": "text", "text": text(rng.choice([8, 40, 300]))}]

model = OnnxEngine(Path(folder), threads=1, context=1024)
messages, at_100, most, dropped, cached = [], 0, 0, 0, 0
for turn in range(1, turns + 1):
    if not messages or rng.random() < 0.15:
        system = {"role": "system", "content": "You are a guide. " + text(60)}
        messages = [system] if rng.random() < 0.7 else []
    messages.append({"role": "user", "content": content()})
    try:
        pieces = list(model.run(Request(
            messages, max_tokens=rng.randint(1, 16), overflow="drop_oldest_turns", image_tokens=70,
            sampling=Sampling(temperature=rng.choice([0, 1]), seed=turn),
        )))
    except EdgeRuntimeError as error:
        assert error.code == "too_large", error
        messages = []
        continue
    usage = pieces[-1].usage
    dropped, cached = dropped + usage.get("dropped_turns", 0), cached + usage["cached_tokens"]
    messages.append({"role": "assistant", "content": "".join(piece.text for piece in pieces).strip() or "Yes."})
    messages = messages[-24:] if messages[-24:][0]["role"] == "user" else messages
    most = max(most, anonymous())
    if turn in (1, 100) or turn % 250 == 0 or turn == turns:
        give_back()  # at rest: what the C library merely has at hand is not what the engine holds
        kept = model._seats._kept.used
        now = anonymous() - kept
        at_100 = now if turn == 100 else at_100
        print(turn, now, kept, most, file=sys.stderr, flush=True)
print(json.dumps({
    "at_100": at_100, "end": now, "most": most, "planned": model.memory.anonymous, "dropped": dropped, "cached": cached,
}))
"""


@pytest.mark.slow
def test_memory_after_ten_thousand_turns(tmp_path: Path):
    script = tmp_path / "soak.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(TURNS), str(builtin.bundle_path())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    print(found)
    assert found["dropped"] > 0
    assert found["cached"] > 0
    assert found["end"] <= found["at_100"] * 1.02
    assert found["most"] <= found["planned"]
