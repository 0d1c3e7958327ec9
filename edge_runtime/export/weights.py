"""Finds a model part's tensors in a checkpoint and checks their shapes against the geometry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.matrix import Rounding, Stored

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.export.safetensors import Checkpoint, Tensor

# Where the parts lie in the checkpoints of Gemma4ForConditionalGeneration, of Gemma4ForCausalLM (and the drafter), and
# of bare models.
_DECODER = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")


@dataclass(frozen=True)
class Weights:
    """The tensors whose names begin with `prefix`."""

    checkpoint: Checkpoint
    prefix: str

    @classmethod
    def of_decoder(cls, checkpoint: Checkpoint) -> Weights:
        """The part that holds the token embedding.

        Raises:
            EdgeRuntimeError: no part does.
        """
        for prefix in _DECODER:
            if f"{prefix}embed_tokens.weight" in checkpoint:
                return cls(checkpoint, prefix)
        raise EdgeRuntimeError(
            f"{checkpoint.folder}: the checkpoint has no tensor model.language_model.embed_tokens.weight"
        )

    @classmethod
    def of_part(cls, checkpoint: Checkpoint, name: str) -> Weights:
        """A part beside the decoder, such as "vision_tower"."""
        prefix = f"model.{name}."
        known = any(tensor.startswith(prefix) for tensor in checkpoint.names())
        return cls(checkpoint, prefix if known else f"{name}.")

    def under(self, name: str) -> Weights:
        """The tensors of a module of this part."""
        return Weights(self.checkpoint, f"{self.prefix}{name}.")

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.checkpoint

    def tensor(self, name: str, *shape: int) -> Tensor:
        """The stored tensor; EdgeRuntimeError if it is missing or has another shape."""
        return self.checkpoint.get(self.prefix + name, shape)

    def vector(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A small tensor as float32, any number of dimensions."""
        return self.tensor(name, *shape).read()

    def scalar(self, name: str, default: float) -> float:
        """A tensor of one value, or `default` where the checkpoint has none."""
        if name not in self:
            return default
        tensor = self.checkpoint.get(self.prefix + name)
        return float(tensor.read().reshape(-1)[0])

    def matrix(
        self,
        name: str,
        outputs: int,
        inputs: int,
        *,
        row_order: NDArray[np.int64] | None = None,
        column_order: NDArray[np.int64] | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> Stored:
        """Rows first..last of the weight `name`.weight [outputs, inputs], and what rounds its input and output."""
        rounding = Rounding(*(self.scalar(f"{name}.{side}_activation_scale", 0.0) for side in ("input", "output")))
        tensor = self.tensor(f"{name}.weight", outputs, inputs)
        return Stored(tensor, row_order, column_order, first, last, rounding)
