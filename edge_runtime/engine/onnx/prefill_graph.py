"""The graph that prompts are read with: of a decoder, what fills its keys and values, for many tokens at a time.

Its inputs and outputs are those of the decoder that it needs, see `export.decoder`; logits are not among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.bundle import names
from edge_runtime.engine.onnx.kv_graph import prune, refill, without_few

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.gemma.geometry import TextGeometry


def prefill_bytes(manifest: Manifest) -> int:
    """Bytes of its matrices, a little more than they are; 0 where the decoder's are float32 or those of experts."""
    text = manifest.geometry.text
    if text.num_experts or all(form.startswith("32/") for form in manifest.formats.get(names.DECODER, ())):
        return 0
    weights, hidden, last = 0, text.hidden_size, text.num_own_layers - 1
    for layer in range(text.num_own_layers):
        dim = text.head_dims[layer]
        weights += 2 * text.kv_heads[layer] * dim * hidden + 3 * text.ple_dim * hidden
        if layer < last:
            weights += 2 * text.num_heads * dim * hidden + 3 * text.mlp_widths[layer] * hidden
    return weights + weights // 50


def prefill_graph(model: Any, text: TextGeometry) -> None:
    """Makes a decoder's graph, as exported, the one for prompts; weights and their products stay as they are.

    Args:
        model: `onnx.ModelProto`, changed in place.
        text: The decoder's shape.
    """
    without_few(model.graph)
    caches = {names.present(layer, part) for layer in range(text.num_own_layers) for part in names.PARTS}
    refill(model.graph.output, [value for value in model.graph.output if value.name in caches])
    prune(model.graph)
