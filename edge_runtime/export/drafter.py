"""The drafter's graph (gemma4_assistant): guesses the tokens that the target will check several at a time.

Inputs (float32 unless said)
    inputs_embeds [1, 1, 2 * H]     the target's scaled embedding of the last token, then its last hidden state (for the
                                    first guess; projected_state of the guess before for the others)
    position_ids int64 [1, 1]       position of the last accepted token, the same for all guesses of a round
    seqlens_k, total_sequence_length, window_seqlens_k, window_total_sequence_length, cos_*, sin_*    as in the decoder
    shared_kv.sliding_attention.key, .value, shared_kv.full_attention.key, .value
                                    the target's buffers of its last own layer of each type
Outputs
    logits [1, 1, V], projected_state [1, 1, H]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle import names
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.export.graph import FLOAT, INT64, Graph
from edge_runtime.export.layers import Stream, TextLayers
from edge_runtime.export.matrix import Stored, head_rows
from edge_runtime.export.weights import Weights
from edge_runtime.gemma.geometry import FULL, SLIDING

if TYPE_CHECKING:
    from edge_runtime.export.safetensors import Checkpoint
    from edge_runtime.gemma.geometry import AssistantGeometry, TextGeometry


def build_drafter(graph: Graph, checkpoint: Checkpoint, assistant: AssistantGeometry, target: TextGeometry) -> None:
    """Adds the whole drafter to an empty graph.

    Args:
        graph: Where to.
        checkpoint: The drafter's tensors.
        assistant: Its geometry.
        target: That of the decoder whose cache it reads, and whose order of head dimensions it must share.

    Raises:
        EdgeRuntimeError: the drafter does not fit the target, or a tensor is missing or has the wrong shape.
    """
    check_fit(assistant, target)
    _Drafter(graph, checkpoint, assistant, target).build()


def check_fit(assistant: AssistantGeometry, target: TextGeometry) -> None:
    """Whether the drafter can read the target's cache and speak its vocabulary.

    Raises:
        EdgeRuntimeError: it cannot.
    """
    text = assistant.text
    pairs = [
        ("backbone_hidden_size", assistant.backbone_hidden_size, target.hidden_size),
        ("vocab_size", text.vocab_size, target.vocab_size),
        ("rope_theta (sliding)", text.rope_theta_sliding, target.rope_theta_sliding),
        ("rope_theta (full)", text.rope_theta_full, target.rope_theta_full),
        ("partial_rotary_factor", text.partial_rotary_factor, target.partial_rotary_factor),
    ]
    for layer, kind in enumerate(text.layer_types):
        source = target.last_own_layer(kind)
        if source < 0:
            raise EdgeRuntimeError(f"the drafter has {kind} layers, the model none")
        pairs.append((f"head_dim ({kind})", text.head_dims[layer], target.head_dims[source]))
        pairs.append((f"num_key_value_heads ({kind})", text.kv_heads[layer], target.kv_heads[source]))
    for name, own, wanted in pairs:
        if own != wanted:
            raise EdgeRuntimeError(
                f"the drafter does not belong to this model: its {name} is {own} instead of {wanted}"
            )


class _Drafter(TextLayers):
    def __init__(
        self, graph: Graph, checkpoint: Checkpoint, assistant: AssistantGeometry, target: TextGeometry
    ) -> None:
        super().__init__(graph, Weights.of_decoder(checkpoint), assistant.text)
        self.assistant, self.target = assistant, target
        self.root = Weights(checkpoint, "")

    def build(self) -> None:
        graph, text, width = self.graph, self.text, self.assistant.backbone_hidden_size
        embeds = graph.input("inputs_embeds", FLOAT, [1, 1, 2 * width])
        graph.input("position_ids", INT64, [1, 1])
        self.lengths()
        for kind in (SLIDING, FULL):
            if kind in text.layer_types:
                layer = text.layer_types.index(kind)
                shape: list[int | str] = [1, text.kv_heads[layer], f"{kind}_capacity", text.head_dims[layer]]
                for part in names.PARTS:
                    graph.input(f"shared_kv.{kind}.{part}", FLOAT, shape)
        stream = Stream(graph.linear(embeds, self.root.matrix("pre_projection", text.hidden_size, 2 * width)))
        for layer in range(text.num_layers):
            stream = self._layer(layer, stream)
        hidden, _ = self.enter(stream, self.weights, "norm")
        state = graph.linear(hidden, self.root.matrix("post_projection", width, text.hidden_size))
        graph.output(state, "projected_state", FLOAT, [1, 1, width])
        logits = self._ordered_head(hidden) if self.assistant.ordered_embeddings else self._head(hidden)
        graph.output(logits, "logits", FLOAT, [1, 1, text.vocab_size])

    def _layer(self, layer: int, stream: Stream) -> Stream:
        text, graph = self.text, self.graph
        weights = self.weights.under(f"layers.{layer}")
        x, residual = self.enter(stream, weights, "input_layernorm")
        q_proj, q_norm = self.query(weights, layer)
        name = f"{weights.prefix}self_attn.q_norm.weight"
        query = self.head_norm(graph.linear(x, q_proj), q_norm, name, text.num_heads, fused=True)
        cache = [f"shared_kv.{text.layer_types[layer]}.{part}" for part in names.PARTS]
        empty = self.no_keys(layer)
        # The guessed token lies one past the cache's last, and transformers' mask lets it see a window from there.
        window = 0 if text.is_full(layer) else text.sliding_window + 1
        attended = self.attention(layer, query, empty, empty, cache, "position_ids", present=[], window=window)
        order = self.order(layer) if self.target.k_eq_v and text.is_full(layer) else None
        columns = None if order is None else head_rows(text.num_heads, text.head_dims[layer], order)
        added, residual = self.after_attention(weights, layer, attended, residual, columns)
        return Stream(added, residual, float(weights.vector("layer_scalar", 1)[0]))

    def _head(self, hidden: str) -> str:
        return self.graph.linear(
            hidden, self.weights.matrix("embed_tokens", self.text.vocab_size, self.text.hidden_size)
        )

    def _ordered_head(self, hidden: str) -> str:
        """Logits of the tokens in the most promising clusters; all others lie 1 below the least of those.

        The rows of the head are stored cluster by cluster, so that a cluster is one contiguous read.
        """
        graph, text, assistant = self.graph, self.text, self.assistant
        vocab, size, clusters = text.vocab_size, text.hidden_size, assistant.num_centroids
        if vocab % clusters or not 0 < assistant.centroid_top_k <= clusters:
            raise EdgeRuntimeError(f"the drafter's {clusters} centroids do not divide its {vocab} tokens")
        weights = self.root.under("masked_embedding")
        ordering = weights.tensor("token_ordering", vocab).integers()
        if not np.array_equal(np.sort(ordering), np.arange(vocab)):
            raise EdgeRuntimeError("the drafter's token_ordering does not name every token once")
        scores = graph.linear(hidden, weights.matrix("centroids", clusters, size))
        best = graph.op_n("TopK", [scores, graph.ints(assistant.centroid_top_k)], 2, axis=-1)[1]
        best = graph.reshape(best, -1)
        rows = Stored(self.weights.tensor("embed_tokens.weight", vocab, size), row_order=ordering)
        chosen = graph.reshape(graph.gather_groups(best, rows, clusters), -1, size)
        logits = graph.op("MatMul", [hidden, graph.transpose(chosen, 1, 0)])
        ids = graph.const(ordering.astype(np.int32).reshape(clusters, -1), "token_ordering")
        tokens = graph.op("Gather", [ids, best], axis=0)
        floor = graph.op("Sub", [graph.op("ReduceMin", [logits], keepdims=1), graph.scalar(1.0)])
        everywhere = graph.op("Expand", [floor, graph.ints(1, 1, vocab)])
        return graph.op("ScatterElements", [everywhere, graph.reshape(tokens, 1, 1, -1), logits], axis=-1)
