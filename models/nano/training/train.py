"""Trains the built-in model from nothing. One process, one GPU, a schedule by the clock.

The speech and picture generators run beside it and fill AUDIO and PICTURES; the README of the model has the commands.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

try:
    from . import data, drafter, frontend, model, step, text
    from .optimizer import Optimizer
    from .pools import PicturePool, SpeechPool
except ImportError:  # run from inside the folder, as on a machine without the repository
    import data  # type: ignore[import-not-found, no-redef]
    import drafter  # type: ignore[import-not-found, no-redef]
    import frontend  # type: ignore[import-not-found, no-redef]
    import model  # type: ignore[import-not-found, no-redef]
    import step  # type: ignore[import-not-found, no-redef]
    import text  # type: ignore[import-not-found, no-redef]
    from optimizer import Optimizer  # type: ignore[import-not-found, no-redef]
    from pools import PicturePool, SpeechPool  # type: ignore[import-not-found, no-redef]

HELDOUT_SPEECH = ("seen", "espeak", "rms", "pico_us")
CLIP_MARGIN = 0.95


class _Stream(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        seed, *rest = self._parts
        for batch in data.batches(seed * 101 + (worker.id if worker else 0), *rest):
            yield {name: torch.from_numpy(np.asarray(value)) for name, value in batch.items()}


class Trainer:
    """The run: data, parameters, captured graphs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(options.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        config = json.loads((options.base / "config.json").read_text())
        self.shape = model.Shape.from_config(config)
        self.tokens = data.Tokens(options.base)
        self.sizes = data.Sizes()
        self.speech = SpeechPool("train*.json", options.audio, options.samples, self.device)
        self.pictures = PicturePool(options.pictures / "train", options.picture_capacity, self.device)
        shapes = json.loads((options.base / "shapes.json").read_text()) | step.head_shapes(self.shape)
        shapes = {name: tuple(dims) for name, dims in shapes.items()}
        initial = model.initial_weights(shapes, torch.Generator().manual_seed(options.seed))
        self.fixed = {n: initial.pop(n).to(self.device) for n in list(initial) if n.endswith("layer_scalar")}
        self.optimizer = Optimizer(initial, self.device)
        dtype = next(iter(self.optimizer.weights.values())).dtype
        self.fixed = {name: value.to(dtype) for name, value in self.fixed.items()}
        self.weights = self.optimizer.weights | self.fixed
        self._graphs: dict[str, step.Graph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self.began = time.monotonic()

    def log(self, *parts: Any) -> None:
        """Prints with the seconds since the start."""
        print(f"[{time.monotonic() - self.began:6.0f}]", *parts, flush=True)

    def wait_for_data(self) -> None:
        """Until the first shards are there."""
        while not (self.speech.speech.utterances and self.pictures.questions):
            self.speech.load()
            self.pictures.load()
            time.sleep(0.5)
        self.log("data", len(self.speech.speech.utterances), "utterances", len(self.pictures.questions), "pictures")

    def stream(self, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        """Endless batches from worker processes."""
        dataset = _Stream(
            seed, self.tokens, self.speech.speech, self.pictures.questions, self.pictures.grids, self.sizes
        )
        workers = self.options.workers
        extra: dict[str, Any] = {"prefetch_factor": 4, "multiprocessing_context": "fork"} if workers else {}
        loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers, **extra)
        return iter(loader)

    def _graph(self, name: str, function: Any, inputs: step.Tensors) -> step.Graph:
        if name not in self._graphs:
            optimizer = self.optimizer
            self._graphs[name] = step.Graph(function, inputs, optimizer.parameters, optimizer.gradients, self._pool)
        return self._graphs[name]

    def _speech_step(self, batch: step.Tensors, on_cpu: step.Tensors, weight: float) -> torch.Tensor:
        frames = int(on_cpu["frames"])
        mel, mask = step.clip_features(self.speech.samples, batch, "clips", frames, augment=True)
        rows = {k: v for k, v in batch.items() if k.startswith(("short.", "long.")) and not k.endswith("image")}

        def forward(x: step.Tensors) -> tuple[torch.Tensor, ...]:
            results, letters = step.speech_losses(self.weights, self.shape, x["mel"], x["mask"], _rows(x))
            return results[0].loss + 0.5 * results[1].loss, letters

        inputs = rows | {"mel": mel, "mask": mask}
        graph = self._graph(f"speech{frames}", forward, inputs)
        loss, letters = graph.forward(inputs)
        scores = letters.detach().float().requires_grad_()
        counts = on_cpu["clips.character_count"]
        # Lengths stay on the CPU: asking the GPU for them would make every step wait.
        ctc = F.ctc_loss(
            scores.log_softmax(-1).transpose(0, 1), batch["clips.characters"], _soft_lengths(on_cpu, frames), counts,
            zero_infinity=True, reduction="none",
        )  # fmt: skip
        mean = (ctc / counts.clamp(min=1).to(ctc.device)).mean()
        (gradient,) = torch.autograd.grad(mean * weight, scores)
        graph.gradients[0].fill_(1.0)
        graph.gradients[1].copy_(gradient)
        graph.backward()
        return torch.stack([loss.detach(), mean.detach()])

    def _image_step(self, batch: step.Tensors, weight: float) -> torch.Tensor:
        mel, mask = step.spoken_inputs(self.speech.samples, batch)
        pictures = self.pictures.pictures(batch["pictures"])
        pictures["pixels"] = _vary(pictures["pixels"])
        rows = {k: v for k, v in batch.items() if k.startswith(("typed.", "heard."))}
        inputs = rows | pictures | {"mel": mel, "mask": mask}

        def forward(x: step.Tensors) -> tuple[torch.Tensor, ...]:
            results, dense = step.image_losses(self.weights, self.shape, x, _rows(x), x["mel"], x["mask"])
            return 1.5 * (results[0].loss + 0.3 * results[1].loss), dense

        graph = self._graph("image", forward, inputs)
        loss, dense = graph.forward(inputs)
        graph.gradients[0].fill_(1.0)
        graph.gradients[1].fill_(weight)
        graph.backward()
        return torch.stack([loss.detach(), dense.detach()])

    def _text_step(self, batch: step.Tensors) -> torch.Tensor:
        rows = {k: v for k, v in batch.items() if k.startswith(("text.", "long_text.")) and k[-5:] not in _MEDIA}

        def forward(x: step.Tensors) -> tuple[torch.Tensor, ...]:
            x = _rows(x)
            short = step.run_rows(self.weights, self.shape, x, "text").loss
            return (short + 0.5 * step.run_rows(self.weights, self.shape, x, "long_text").loss,)

        graph = self._graph("text", forward, rows)
        (loss,) = graph.forward(rows)
        graph.gradients[0].fill_(1.0)
        graph.backward()
        return loss.detach()[None]

    def update(self, on_cpu: step.Tensors, progress: float) -> torch.Tensor:
        """One step over a batch of all three kinds. Returns the losses: speech, CTC, pictures, dense, text."""
        batch = {name: value.to(self.device, non_blocking=True) for name, value in on_cpu.items()}
        fade = max(0.15, 1 - 1.1 * progress)
        losses = torch.cat(
            [self._speech_step(batch, on_cpu, fade), self._image_step(batch, 0.6 * fade), self._text_step(batch)]
        )
        warm = min(1.0, (self.optimizer.steps + 1) / self.options.warmup)
        cosine = 1.0 if progress < 0.35 else 0.5 * (1 + math.cos(math.pi * (progress - 0.35) / 0.65)) * 0.98 + 0.02
        self.optimizer.quantize = progress > self.options.quantize_from
        self.norm = self.optimizer.step(self.options.rate * warm * cosine)
        return losses

    def run(self) -> None:
        """Trains for the budget, then the drafter; saves and scores along the way."""
        options = self.options
        self.wait_for_data()
        stream, seed = self.stream(options.seed), options.seed
        total = torch.zeros(5, device=self.device)
        marks = {"log": time.monotonic(), "load": time.monotonic(), "eval": time.monotonic()}
        counted = 0
        start = time.monotonic()
        for count in itertools.count(1):
            now = time.monotonic()
            progress = (now - start) / options.budget
            if progress >= 1 or count > options.steps:
                break
            total += self.update(next(stream), progress)
            counted += 1
            if count in (1, 5, 20) or count % options.log_every == 0:
                losses = [round(x, 4) for x in (total / counted).tolist()]
                pace = (time.monotonic() - marks["log"]) / counted * 1000
                self.log(f"step {count} {progress:.3f} losses {losses} norm {float(self.norm):.2f} {pace:.0f} ms/step")
                total.zero_()
                counted, marks["log"] = 0, time.monotonic()
            if progress < 0.9 and now - marks["load"] > (20 if progress < 0.2 else 60):
                fresh = [self.speech.load(), self.pictures.load(remove=True)]
                if any(fresh):
                    seed += 1
                    del stream
                    stream = self.stream(seed)
                    utterances, pictures = len(self.speech.speech.utterances), len(self.pictures.questions)
                    self.log("loaded", utterances, "utterances", pictures, "pictures")
                marks["load"] = time.monotonic()
            # Near the end the final scores follow anyway.
            if progress < 0.9 and now - marks["eval"] > options.evaluate_every:
                self.evaluate()
                self.save(options.out)
                marks["eval"] = time.monotonic()
        self.evaluate()
        self.save(options.out)
        drafter.train(self, stream, options.drafter_budget)
        self.log("done")

    @torch.no_grad()
    def evaluate(self) -> None:
        """Exact answers on held-out data, by group, teacher-forced: the same as greedy ones when all are right."""
        weights = self.optimizer.averaged() | self.fixed
        scores: dict[str, list[bool]] = {}
        r = random.Random(99)
        sizes = self.sizes
        for name in HELDOUT_SPEECH:
            pool = SpeechPool(f"{name}*.json", self.options.audio, self.options.heldout_samples, self.device)
            pool.load()
            order = np.argsort(pool.speech.lengths)
            size = sizes.short_speech + sizes.long_speech
            for start in range(0, len(order) - size + 1, size):
                chosen = [int(i) for i in order[start : start + size]]
                batch, groups = data.speech_batch(r, self.tokens, pool.speech, chosen, sizes, augment=False)
                x = self._to_device(batch)
                mel, mask = step.clip_features(pool.samples, x, "clips", int(batch["frames"]), augment=False)
                results, _ = step.speech_losses(weights, self.shape, mel, mask, _rows(x))
                _tally(scores, [f"{name}.{group}" for group in groups], results)
        held = PicturePool(self.options.pictures / "heldout", 1200, self.device)
        held.load()
        typed, _ = sizes.image_rows()
        for start in range(0, len(held.questions) - typed.count + 1, typed.count):
            indices = list(range(start, start + typed.count))
            batch, groups = data.image_batch(r, self.tokens, held.questions, held.grids, None, sizes, indices=indices)
            pictures = held.pictures(torch.from_numpy(batch["pictures"]))
            soft = step.image_features(weights, self.shape, pictures)[2]
            result = step.run_rows(weights, self.shape, _rows(self._to_device(batch)), "typed", image=soft)
            _tally(scores, [f"image.{group}" for group in groups], [result])
        pool_texts = text.corpus(4321, 4000, heldout=True, kinds=("cmd", "faq", "math", "unknown", "general"))
        answered = [utterance for utterance in pool_texts if utterance.answer]
        for _ in range(3):
            batch, groups = data.text_batch(r, self.tokens, pool_texts, answered, sizes)
            x = self._to_device(batch)
            results = [step.run_rows(weights, self.shape, _rows(x), name) for name in ("text", "long_text")]
            _tally(scores, [f"text.{group}" for group in groups], results)
        shown = {name: f"{np.mean(value):.3f}/{len(value)}" for name, value in sorted(scores.items())}
        self.log("SCORES", json.dumps(shown))

    def _to_device(self, batch: data.Batch) -> step.Tensors:
        return {name: torch.from_numpy(np.asarray(value)).to(self.device) for name, value in batch.items()}

    @torch.no_grad()
    def _clip_ranges(self, weights: model.Weights) -> step.Tensors:
        """The range each clipped linear sees on training data, a little narrower: the bounds of the checkpoint."""
        ranges: dict[str, list[float]] = {}

        def note(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
            seen = [*x.float().aminmax(), *y.float().aminmax()]
            old = ranges.get(name, [math.inf, -math.inf] * 2)
            values = [float(value) for value in seen]
            ranges[name] = [f(a, b) for f, a, b in zip((min, max, min, max), old, values, strict=True)]

        model.observe = note
        pictures = torch.arange(0, min(len(self.pictures.questions), 256))
        step.image_features(weights, self.shape, self.pictures.pictures(pictures))
        r = random.Random(0)
        speech = self.speech.speech
        for _ in range(4):
            chosen = [r.randrange(len(speech.utterances)) for _ in range(128)]
            x = self._to_device(data.speech_batch(r, self.tokens, speech, chosen, self.sizes)[0])
            mel, mask = step.clip_features(self.speech.samples, x, "clips", int(x["frames"]), augment=True)
            model.audio_forward(weights, self.shape, mel, mask)
        model.observe = None
        bounds = ("input_min", "input_max", "output_min", "output_max")
        return {
            f"{name}.{bound}": torch.tensor(value * CLIP_MARGIN)
            for name, values in ranges.items()
            for bound, value in zip(bounds, values, strict=True)
        }

    def save(self, out: Path) -> None:
        """Writes the checkpoint: what `base` made, and model.safetensors in bf16, as transformers names things."""
        shutil.copytree(self.options.base, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("shapes.json"))
        weights = self.optimizer.averaged() | self.fixed
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
        weights |= self._clip_ranges(weights)
        stored = {name: value.detach().to(torch.bfloat16).cpu().contiguous() for name, value in weights.items()}
        save_file(stored, out / "model.partial", metadata={"format": "pt"})
        (out / "model.partial").rename(out / "model.safetensors")


_MEDIA = ("audio", "image")


def _rows(inputs: step.Tensors) -> step.Tensors:
    """Adds the empty media indices that a graph without that medium has no input for."""
    out = dict(inputs)
    for name in inputs:
        if name.endswith(".ids"):
            for medium in _MEDIA:
                out.setdefault(f"{name[:-4]}.{medium}", inputs[name])
    return out


def _soft_lengths(on_cpu: step.Tensors, frames: int) -> torch.Tensor:
    """Soft tokens of each clip, from the numbers it was cut by."""
    spoken = (on_cpu["clips.length"] / on_cpu["clips.speed"]).long()
    samples = (on_cpu["clips.lead"] + spoken + on_cpu["clips.trail"]).clamp(max=frames * frontend.HOP)
    return frontend.soft_token_count(frontend.frame_count(samples)).clamp(1, frames // 4)


def _vary(pixels: torch.Tensor) -> torch.Tensor:
    """Brightness and noise of its own for each picture, on uint8 patches."""
    gain = torch.empty(pixels.shape[0], 1, 1, device=pixels.device).uniform_(0.92, 1.08)
    spread = torch.empty(pixels.shape[0], 1, 1, device=pixels.device).uniform_(0, 4)
    noise = torch.randn(pixels.shape, device=pixels.device, dtype=torch.float16) * spread.half()
    return (pixels * gain + noise).clamp(0, 255).to(torch.uint8)


def _tally(scores: dict[str, list[bool]], groups: list[str], results: list[step.RowResult]) -> None:
    right = [bool(x) for result in results for x in result.right.tolist()]
    for group, value in zip(groups, right, strict=True):
        scores.setdefault(group, []).append(value)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("base", "audio", "pictures", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    numbers: dict[str, float] = {
        "budget": 1300.0, "drafter-budget": 60.0, "rate": 1.5e-3, "quantize-from": 0.6, "evaluate-every": 240.0,
        "warmup": 400, "workers": 4, "steps": 10**9, "log-every": 200, "seed": 0, "samples": 5_600_000_000,
        "heldout-samples": 60_000_000, "picture-capacity": 80_000,
    }  # fmt: skip
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    Trainer(parser.parse_args()).run()


if __name__ == "__main__":
    main()
