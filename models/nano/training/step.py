"""What a training step computes: losses of the three kinds of rows, dense helpers, and their capture as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

try:
    from . import frontend, model
    from .data import GRIDS, QUESTION_FRAMES
except ImportError:  # run from inside the folder, as on a machine without the repository
    import frontend  # type: ignore[import-not-found, no-redef]
    import model  # type: ignore[import-not-found, no-redef]
    from data import GRIDS, QUESTION_FRAMES  # type: ignore[import-not-found, no-redef]

Tensors = dict[str, torch.Tensor]
LETTERS = 29
# Classes of the dense labels (images.py), the empty class first; the last two are yes or no.
PATCH_LABELS = {"char": 39, "shape": 7, "color": 11, "other": 16, "center": 2, "char_start": 2}
SOFT_LABELS = {"slot0": 39, "slot1": 39, "slot2": 39, "center_shape": 7, "center_color": 11, "centers": 3}
SCALAR_LABELS = {"dial": 21, "tank": 11, "count": 9}


def head_shapes(shape: model.Shape) -> dict[str, tuple[int, ...]]:
    """The helper heads: used in training only, never exported."""
    width = shape.vision["hidden_size"]
    return {
        "head.ctc.weight": (LETTERS, shape.audio["output_proj_dims"]),
        "head.ctc.bias": (LETTERS,),
        "head.patch.weight": (sum(PATCH_LABELS.values()), width),
        "head.soft.weight": (sum(SOFT_LABELS.values()), width),
        "head.scalar.weight": (sum(SCALAR_LABELS.values()), width),
    }


def soft_labels(labels: dict[str, Any], kinds: Any) -> Any:
    """Labels of each soft token from its nine patches.

    Args:
        labels: PATCH_LABELS' maps, uint8 [N, 576].
        kinds: Index into GRIDS, [N].

    Returns:
        uint8 [N, 64, len(SOFT_LABELS)]: its first three glyphs in reading order, the shape and the colour of the object
        centred in it, and how many are centred in it.
    """
    cells = cell_table().numpy()[kinds]  # [N, 64, 9], row by row inside a cell
    columns = cells.reshape(*cells.shape[:2], 3, 3).swapaxes(2, 3).reshape(cells.shape)

    def pick(name: str, at: Any) -> Any:
        flat = at.reshape(len(at), -1)
        return np.take_along_axis(labels[name], flat, 1).reshape(at.shape)

    glyphs = pick("char", columns) * (pick("char_start", columns) > 0)
    order = np.argsort(glyphs == 0, axis=-1, kind="stable")[..., :3]
    slots = np.take_along_axis(glyphs, order, -1)
    centre = pick("center", cells) > 0
    shape, color = (pick("shape", cells) * centre).max(-1), (pick("color", cells) * centre).max(-1)
    count = np.minimum(centre.sum(-1), 2)
    return np.stack([*slots.transpose(2, 0, 1), shape, color, count], -1).astype(np.uint8)


def cell_table() -> torch.Tensor:
    """Patch indices of each soft token: int64 [len(GRIDS), 64, 9]."""
    out = []
    for w, h in GRIDS:
        cells = [
            [(3 * j + y) * w + 3 * i + x for y in range(3) for x in range(3)]
            for j in range(h // 3)
            for i in range(w // 3)
        ]
        out.append(cells + [cells[-1]] * (64 - len(cells)))
    return torch.tensor(out)


def position_table() -> torch.Tensor:
    """Patch positions (x, y): int64 [len(GRIDS), 576, 2], -1 behind a grid's end."""
    out = torch.full((len(GRIDS), 576, 2), -1)
    for k, (w, h) in enumerate(GRIDS):
        at = torch.arange(w * h)
        out[k, : w * h, 0], out[k, : w * h, 1] = at % w, at // w
    return out


def _splice(embeds: torch.Tensor, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Puts soft token `index` of `features` [R, S, H] where index >= 0."""
    count = features.shape[1]
    # Unused places read different rows: a thousand gradients for one row would queue up behind each other.
    spread = torch.arange(index.shape[1], device=index.device) % count
    at = torch.where(index >= 0, index.clamp(max=count - 1), spread)
    picked = features.gather(1, at[..., None].expand(-1, -1, features.shape[-1]))
    return torch.where((index >= 0)[..., None], picked.to(embeds.dtype), embeds)


@dataclass
class RowResult:
    """Loss and, for each row, whether every answer token was the likeliest."""

    loss: torch.Tensor
    right: torch.Tensor
    hidden: torch.Tensor
    kv: dict[str, tuple[torch.Tensor, torch.Tensor]]


def run_rows(
    w: model.Weights,
    shape: model.Shape,
    rows: Tensors,
    name: str,
    *,
    audio: torch.Tensor | None = None,
    image: torch.Tensor | None = None,
    keep_kv: bool = False,
) -> RowResult:
    """Runs the decoder over group `name` of `rows`; `audio` and `image` are projected soft tokens [R, S, H]."""
    ids = rows[f"{name}.ids"]
    embeds = model.embed(w, shape, ids)
    for features, index in ((audio, rows[f"{name}.audio"]), (image, rows[f"{name}.image"])):
        if features is not None:
            embeds = _splice(embeds, features, index)
    hidden, kv = model.text_forward(w, shape, embeds, ids, keep_kv)
    at = rows[f"{name}.at"]
    picked = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))
    scores = model.logits(w, shape, picked)
    target, weight = rows[f"{name}.target"], rows[f"{name}.weight"]
    loss = F.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none").view_as(weight)
    right = ((scores.argmax(-1) == target) | (weight == 0)).all(1)
    return RowResult((loss * weight).sum() / weight.sum().clamp(min=1), right, picked, kv)


def speech_losses(
    w: model.Weights, shape: model.Shape, mel: torch.Tensor, mask: torch.Tensor, rows: Tensors, **options: Any
) -> tuple[list[RowResult], torch.Tensor]:
    """Results of the short and long rows, and CTC logits [B, T/4, LETTERS]."""
    features, _ = model.audio_forward(w, shape, mel, mask)
    soft = model.project(w, "audio", features)
    count = rows["short.ids"].shape[0]
    results = [
        run_rows(w, shape, rows, "short", audio=soft[:count], **options),
        run_rows(w, shape, rows, "long", audio=soft[count:], **options),
    ]
    return results, F.linear(features, w["head.ctc.weight"], w["head.ctc.bias"])


def _class_loss(scores: torch.Tensor, target: torch.Tensor, sizes: dict[str, int], valid: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of several labels; the empty class counts less, since most places are empty."""
    total = torch.zeros((), device=scores.device)
    for k, part in enumerate(scores.float().split(list(sizes.values()), -1)):
        at = target[..., k].long()
        weight = (0.25 + 0.75 * (at > 0)) * valid
        loss = F.cross_entropy(part.flatten(0, 1), at.flatten(), reduction="none").view_as(weight)
        total = total + (loss * weight).sum() / weight.sum().clamp(min=1)
    return total


def image_features(
    w: model.Weights, shape: model.Shape, pictures: Tensors
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patch features, pooled features and projected soft tokens of `pictures` (pixels uint8, kind)."""
    kind = pictures["kind"]
    positions, cells = pictures["positions"][kind], pictures["cells"][kind]
    dtype = w[model.TEXT + "norm.weight"].dtype
    patches = model.vision_forward(w, shape, (pictures["pixels"] / 255).to(dtype), positions)
    pooled = model.pool(patches, cells)
    return patches, pooled, model.project(w, "vision", pooled)


def image_losses(
    w: model.Weights, shape: model.Shape, pictures: Tensors, rows: Tensors, mel: torch.Tensor, mask: torch.Tensor
) -> tuple[list[RowResult], torch.Tensor]:
    """Results of the typed and spoken rows, and the dense helpers' loss."""
    patches, pooled, soft = image_features(w, shape, pictures)
    count = rows["typed.ids"].shape[0]
    heard = model.project(w, "audio", model.audio_forward(w, shape, mel, mask)[0])
    results = [
        run_rows(w, shape, rows, "typed", image=soft[:count]),
        run_rows(w, shape, rows, "heard", image=soft[count:], audio=heard),
    ]
    valid = (pictures["positions"][pictures["kind"]][..., 0] >= 0).float()
    dense = _class_loss(F.linear(model.norm(patches), w["head.patch.weight"]), pictures["patch"], PATCH_LABELS, valid)
    alive = torch.ones(pooled.shape[:2], device=valid.device)
    dense = dense + _class_loss(
        F.linear(model.norm(pooled), w["head.soft.weight"]), pictures["soft"], SOFT_LABELS, alive
    )
    whole = F.linear(model.norm(model.norm(patches).mean(1)), w["head.scalar.weight"]).float()
    for k, part in enumerate(whole.split(list(SCALAR_LABELS.values()), -1)):
        target = pictures["scalar"][:, k]
        loss = F.cross_entropy(part, target.clamp(min=0), reduction="none")
        dense = dense + 0.5 * (loss * (target >= 0)).sum() / (target >= 0).sum().clamp(min=1)
    return results, dense


def clip_features(
    pool: torch.Tensor, clips: Tensors, name: str, frames: int, *, augment: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel [B, frames, 128] and mask of a batch's clips."""
    offset, length, speed, lead, trail = (
        clips[f"{name}.{part}"] for part in ("offset", "length", "speed", "lead", "trail")
    )
    waves, total = frontend.speak(pool, offset, length, speed, lead, trail, frames * frontend.HOP, augment=augment)
    return frontend.log_mel(waves, total, augment=augment)


class Graph:
    """A forward and a backward pass captured as two CUDA graphs.

    `function(inputs)` returns tensors; their gradients come from `self.gradients` (ones to begin with) when `backward`
    is called, and the parameters' gradients are added to `into`. On a CPU it simply runs.
    """

    def __init__(
        self,
        function: Callable[[Tensors], tuple[torch.Tensor, ...]],
        inputs: Tensors,
        parameters: list[torch.Tensor],
        into: list[torch.Tensor],
        pool: Any,
    ) -> None:
        self.inputs = {key: value.clone() for key, value in inputs.items()}
        self._function, self._parameters, self._into = function, parameters, into
        self._captured = next(iter(inputs.values())).is_cuda
        if self._captured:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self.outputs = function(self.inputs)
                    self.gradients = [torch.ones_like(out) for out in self.outputs]
                    self._add(torch.autograd.grad(self.outputs, parameters, self.gradients, allow_unused=True))
            torch.cuda.current_stream().wait_stream(stream)
            self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._forward, pool=pool):
                self.outputs = function(self.inputs)
            self.gradients = [torch.ones_like(out) for out in self.outputs]
            with torch.cuda.graph(self._backward, pool=pool):
                self._add(torch.autograd.grad(self.outputs, parameters, self.gradients, allow_unused=True))
            # The activations go back to the pool: graphs run one after another, so the next may use the same memory.
            self.outputs = tuple(out.detach() for out in self.outputs)
            torch._foreach_zero_(into)

    def _add(self, gradients: tuple[torch.Tensor | None, ...]) -> None:
        pairs = [(g, into) for g, into in zip(gradients, self._into, strict=True) if g is not None]
        torch._foreach_add_([into for _, into in pairs], [g for g, _ in pairs])

    def forward(self, inputs: Tensors) -> tuple[torch.Tensor, ...]:
        """Runs the forward pass on `inputs` (copied in)."""
        torch._foreach_copy_([self.inputs[key] for key in self.inputs], [inputs[key] for key in self.inputs])
        if self._captured:
            self._forward.replay()
        else:
            self.outputs = self._function(self.inputs)
            self.gradients = [torch.ones_like(out) for out in self.outputs]
        return self.outputs

    def backward(self) -> None:
        """Adds the parameters' gradients to `into`."""
        if self._captured:
            self._backward.replay()
        else:
            self._add(torch.autograd.grad(self.outputs, self._parameters, self.gradients, allow_unused=True))


def spoken_inputs(pool: torch.Tensor, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel and mask of the spoken questions about pictures."""
    return clip_features(pool, batch, "asked", QUESTION_FRAMES, augment=True)
