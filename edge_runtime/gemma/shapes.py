"""The parts of a Gemma 4 model as numbers: decoder, image tower, audio tower. `geometry` reads them."""

from __future__ import annotations

from dataclasses import dataclass

SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclass(frozen=True)
class TextGeometry:
    """The decoder. Tuples have one entry per layer."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    layer_types: tuple[str, ...]
    """`SLIDING` or `FULL`."""
    head_dims: tuple[int, ...]
    kv_heads: tuple[int, ...]
    mlp_widths: tuple[int, ...]
    kv_sources: tuple[int, ...]
    """The layer whose keys and values a layer reads: itself, or the last own-KV layer of its type. -1 in a drafter,
    whose layers read the target's cache."""
    num_own_layers: int
    """Layers 0 .. num_own_layers-1 compute keys and values; the rest share them."""
    sliding_window: int
    rope_theta_sliding: float
    rope_theta_full: float
    partial_rotary_factor: float
    """Of full layers: the fraction of the head's pairs that turn."""
    ple_dim: int
    """Width of a layer's per-layer embedding; 0 where the model has none."""
    ple_vocab_size: int
    rms_eps: float
    softcap: float
    """Final logits are softcap * tanh(logits / softcap); 0 = as they are."""
    k_eq_v: bool
    """Full layers take their values from k_proj."""
    max_positions: int
    bidirectional_images: bool = False
    """On sliding layers the soft tokens of an image see each other, not only those before."""
    num_experts: int = 0
    """Experts beside each layer's MLP; 0 where there are none."""
    experts_per_token: int = 0
    expert_width: int = 0

    @property
    def num_shared_layers(self) -> int:
        """Layers that read another layer's keys and values."""
        return self.num_layers - self.num_own_layers

    def is_full(self, layer: int) -> bool:
        """Whether `layer` attends to the whole context."""
        return self.layer_types[layer] == FULL

    def head_dim(self, layer_type: str) -> int:
        """Head size of the layers of one type; 0 if there are none."""
        return next((d for d, t in zip(self.head_dims, self.layer_types, strict=True) if t == layer_type), 0)

    def rotated_pairs(self, layer_type: str) -> int:
        """Pairs of a head that rotary embedding turns: the width of the cos and sin tables."""
        dim = self.head_dim(layer_type)
        return int(self.partial_rotary_factor * dim // 2) if layer_type == FULL else dim // 2

    def last_own_layer(self, layer_type: str) -> int:
        """The last own-KV layer of one type: what shared layers and a drafter read; -1 if there is none."""
        own = (i for i in range(self.num_own_layers) if self.layer_types[i] == layer_type)
        return max(own, default=-1)


@dataclass(frozen=True)
class VisionGeometry:
    """The image tower."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    patch_size: int
    pool_size: int
    """A soft token averages pool_size x pool_size patches."""
    position_table_size: int
    """Largest number of patches along one side."""
    rope_theta: float
    rms_eps: float
    clipped: bool
    """Linear layers clamp their input and output to bounds kept in the checkpoint."""
    standardize: bool


@dataclass(frozen=True)
class AudioGeometry:
    """The audio tower."""

    hidden_size: int
    num_layers: int
    num_heads: int
    conv_channels: tuple[int, int]
    conv_kernel_size: int
    residual_weight: float
    chunk_size: int
    context_left: int
    """A frame sees the context_left - 2 frames before it (context_left - 1 with itself)."""
    context_right: int
    logit_cap: float
    invalid_logit: float
    gradient_clipping: float
    output_dim: int
    rms_eps: float
    clipped: bool
    mel_bins: int = 128
