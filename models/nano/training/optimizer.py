"""AdamW over one flat vector: fp32 masters and their average, bf16 working copies, 4-bit rounding when asked for."""

from __future__ import annotations

import math

import torch

try:
    from . import model
except ImportError:  # run from inside the folder, as on a machine without the repository
    import model  # type: ignore[import-not-found, no-redef]

BLOCK = 32
DECAY = 0.05
BETAS = (0.9, 0.98)


def is_quantized(name: str) -> bool:
    """Whether the int4 recipe rounds this weight to 4 bits: the decoder's matrices and tables."""
    return name.startswith(model.TEXT) and name.endswith("weight") and "norm" not in name.rsplit(".", 2)[-2]


def round_to_int4(flat: torch.Tensor) -> torch.Tensor:
    """Symmetric 4-bit blocks of 32 as the exporter makes them: the largest magnitude maps to -8."""
    blocks = flat.view(-1, BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / -8
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return ((blocks / scale).round().clamp(-8, 7) * scale).view(-1)


class Optimizer:
    """Owns the parameters. `weights` are the bf16 (fp32 on a CPU) tensors a model runs on."""

    def __init__(self, initial: model.Weights, device: torch.device, *, average: float = 0.999) -> None:
        names = sorted(initial, key=lambda name: not is_quantized(name))
        self.names = names
        self._shapes = [initial[name].shape for name in names]
        self._average = average
        flat = torch.cat([initial[name].reshape(-1).float() for name in names]).to(device)
        self._quantized = sum(initial[name].numel() for name in names if is_quantized(name))
        self.master, self.ema = flat, flat.clone()
        self._first, self._second = torch.zeros_like(flat), torch.zeros_like(flat)
        decays = [
            torch.full((initial[n].numel(),), float(initial[n].dim() >= 2 and "embed_tokens" not in n)) for n in names
        ]
        self._decay = torch.cat(decays).to(device) * DECAY
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._working = flat.to(dtype)
        self._gradient = torch.zeros_like(self._working)
        self.parameters = [part.requires_grad_() for part in self._split(self._working)]
        self.gradients = self._split(self._gradient)
        self.weights = dict(zip(names, self.parameters, strict=True))
        self.steps = 0
        self.quantize = False

    def _split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        out, start = [], 0
        for shape in self._shapes:
            size = math.prod(shape)
            out.append(flat[start : start + size].view(shape).detach())
            start += size
        return out

    def rounded(self, flat: torch.Tensor) -> torch.Tensor:
        """`flat` with the decoder's weights on their 4-bit grid, if quantization is on."""
        if not self.quantize:
            return flat
        return torch.cat([round_to_int4(flat[: self._quantized]), flat[self._quantized :]])

    @torch.no_grad()
    def step(self, rate: float) -> torch.Tensor:
        """One AdamW step from the gathered gradients, which it clears. Returns the gradient's norm."""
        self.steps += 1
        gradient = self._gradient.float()
        size = gradient.norm()
        gradient *= (1.0 / (size + 1e-6)).clamp(max=1.0)
        gradient = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
        self._first.lerp_(gradient, 1 - BETAS[0])
        self._second.lerp_(gradient * gradient, 1 - BETAS[1])
        ahead = self._first / (1 - BETAS[0] ** self.steps)
        spread = (self._second / (1 - BETAS[1] ** self.steps)).sqrt_() + 1e-8
        self.master -= rate * (ahead / spread + self._decay * self.master)
        keep = min(self._average, (1 + self.steps) / (10 + self.steps))
        self.ema.lerp_(self.master, 1 - keep)
        self._working.copy_(self.rounded(self.master))
        self._gradient.zero_()
        return size

    @torch.no_grad()
    def averaged(self) -> model.Weights:
        """The averaged weights, rounded as they will be exported, in the working dtype."""
        return dict(zip(self.names, self._split(self.rounded(self.ema).to(self._working.dtype)), strict=True))
