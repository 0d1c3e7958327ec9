"""The text part of a Gemma 4 checkpoint as GGUF, its quantised forms, and their logits, all through llama.cpp.

Needs the packages of the `bench` extra: gguf, which writes the files, and llama-cpp-python, which is llama.cpp.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from typing import TYPE_CHECKING, Any, Self

import gguf
import llama_cpp
import numpy as np

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.evaluation.exchanges import MODALITIES
from edge_runtime.export.pipeline import read_config
from edge_runtime.export.safetensors import Checkpoint
from edge_runtime.gemma.geometry import Geometry
from edge_runtime.gemma.shapes import FULL, SLIDING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.evaluation.exchanges import Exchange
    from edge_runtime.evaluation.kld import Reader
    from edge_runtime.gemma.shapes import TextGeometry

_PREFIX = "model.language_model."
_CONTEXT = 4096
_BATCH = 512
_UNROTATED = 1e30  # a divisor of a frequency so large that the pair stands still


def write_gguf(checkpoint: Path, out: Path, *, wide: bool) -> None:
    """Writes what llama.cpp's own convert_hf_to_gguf.py writes of the decoder.

    Args:
        checkpoint: Folder of a Gemma 4 with tower prefixes and per-layer embeddings.
        out: The file to make.
        wide: Matrices as float32, else as bfloat16; vectors are float32 either way.
    """
    text = Geometry.from_config(read_config(checkpoint)).text
    writer = gguf.GGUFWriter(out, "gemma4")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if wide else gguf.LlamaFileType.MOSTLY_BF16)
    _add_geometry(writer, text)
    _add_vocabulary(writer, checkpoint)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA4, text.num_layers)
    pairs = text.head_dim(FULL) // 2
    turning = text.rotated_pairs(FULL)
    factors = np.array([1.0] * turning + [_UNROTATED] * (pairs - turning), np.float32)
    writer.add_tensor("rope_freqs.weight", factors)
    bf16 = gguf.GGMLQuantizationType.BF16
    with Checkpoint(checkpoint) as tensors:
        for name in sorted(tensors.names()):
            if not name.startswith(_PREFIX):
                continue
            known = table.get_name("model." + name.removeprefix(_PREFIX), try_suffixes=(".weight",))
            if known is None:
                raise EdgeRuntimeError(f"{name} has no place in a GGUF")
            # A layer's scalar has no suffix here and one there.
            known += "" if known.endswith(".weight") else ".weight"
            values = tensors.get(name).read()
            if wide or values.ndim < 2:
                writer.add_tensor(known, values)
            else:
                writer.add_tensor(known, gguf.quants.quantize(values, bf16), raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_geometry(writer: gguf.GGUFWriter, text: TextGeometry) -> None:
    full, sliding = text.head_dim(FULL), text.head_dim(SLIDING)
    writer.add_block_count(text.num_layers)
    writer.add_context_length(text.max_positions)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(list(text.mlp_widths))
    writer.add_head_count(text.num_heads)
    writer.add_head_count_kv(list(text.kv_heads))
    writer.add_rope_freq_base(text.rope_theta_full)
    writer.add_rope_freq_base_swa(text.rope_theta_sliding)
    writer.add_layer_norm_rms_eps(text.rms_eps)
    writer.add_key_length(full)
    writer.add_value_length(full)
    writer.add_key_length_swa(sliding)
    writer.add_value_length_swa(sliding)
    writer.add_rope_dimension_count(full)
    writer.add_rope_dimension_count_swa(sliding)
    writer.add_final_logit_softcapping(text.softcap)
    writer.add_sliding_window(text.sliding_window)
    writer.add_sliding_window_pattern([kind == SLIDING for kind in text.layer_types])
    writer.add_shared_kv_layers(text.num_shared_layers)
    writer.add_embedding_length_per_layer_input(text.ple_dim)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: gguf.GGUFWriter, checkpoint: Path) -> None:
    """The tokens; ids are handed to llama.cpp as they are, so it never splits text with them."""
    data = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    words = dict(data["model"]["vocab"]) | {token["content"]: token["id"] for token in data["added_tokens"]}
    tokens = sorted(words, key=lambda word: words[word])
    special = {token["content"] for token in data["added_tokens"] if token["special"]}
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens)
    writer.add_token_scores([-1000.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for name, add in (("<bos>", writer.add_bos_token_id), ("<eos>", writer.add_eos_token_id)):
        add(words[name])


def quantize(source: Path, out: Path, kind: str) -> None:
    """Makes a quantised GGUF of a wide one, as `llama-quantize SOURCE OUT KIND` does.

    Raises:
        EdgeRuntimeError: llama.cpp refuses.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    with quiet():
        failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if failed:
        raise EdgeRuntimeError(f"llama.cpp cannot make {kind} of {source}")


def tensor_sizes(path: Path) -> dict[str, tuple[str, int, int]]:
    """Of each tensor of a GGUF: type, number of weights and bytes."""
    reader = gguf.GGUFReader(path)
    return {t.name: (t.tensor_type.name, int(t.n_elements), int(t.n_bytes)) for t in reader.tensors}


@contextlib.contextmanager
def quiet() -> Any:
    """llama.cpp's own lines on stderr are left out."""
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    try:
        yield
    finally:
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))


class GgufSource:
    """A GGUF as a `kld.Source`. A context manager: leaving it frees the model.

    Prompts, answers and soft tokens come from a bundle's reader, so that only decoders differ: pictures and sounds are
    handed to llama.cpp as the embeddings that the bundle's towers make of them. The cache holds float32, as ours does.
    """

    def __init__(self, path: Path, reader: Reader, *, threads: int = 1) -> None:
        """Loads `path`.

        Raises:
            EdgeRuntimeError: llama.cpp cannot load it.
        """
        self.name, self._reader = path.stem, reader
        llama_cpp.llama_backend_init()
        with quiet():
            self._model = llama_cpp.llama_model_load_from_file(
                str(path).encode(), llama_cpp.llama_model_default_params()
            )
            params = llama_cpp.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch = _CONTEXT, _BATCH, _BATCH
            params.n_threads = params.n_threads_batch = threads
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self._context = llama_cpp.llama_init_from_model(self._model, params) if self._model else None
        if not self._context:
            raise EdgeRuntimeError(f"llama.cpp cannot load {path}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    @property
    def modalities(self) -> Sequence[str]:
        """See Source."""
        return MODALITIES

    def logits(self, exchange: Exchange) -> NDArray[np.float32]:
        """See Source."""
        prompt, soft, answer = self._reader.read(exchange)
        ids = [*prompt.ids, *answer[:-1]]
        first = len(prompt.ids) - 1
        rows: list[NDArray[np.float32]] = []
        with quiet():
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
            done = 0
            for span, features in zip(prompt.spans, soft, strict=True):
                self._feed(np.array(ids[done : span.start], np.int32), done, first, rows)
                self._feed(features, span.start, first, rows)
                done = span.start + span.count
            self._feed(np.array(ids[done:], np.int32), done, first, rows)
        return np.stack(rows)

    def _feed(self, part: NDArray[Any], start: int, first: int, rows: list[NDArray[np.float32]]) -> None:
        """Runs token ids [n] or embeddings [n, hidden] at positions from `start`; keeps logits from `first` on."""
        for at in range(0, len(part), _BATCH):
            piece = np.ascontiguousarray(part[at : at + _BATCH])
            width = 0 if piece.ndim == 1 else piece.shape[1]
            batch = llama_cpp.llama_batch_init(len(piece), width, 1)
            batch.n_tokens = len(piece)
            ctypes.memmove(batch.embd if width else batch.token, piece.ctypes.data, piece.nbytes)
            for i in range(len(piece)):
                batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = start + at + i, 1, 0
                batch.logits[i] = start + at + i >= first
            failed = llama_cpp.llama_decode(self._context, batch)
            for i in range(len(piece)):
                if batch.logits[i] and not failed:
                    row = llama_cpp.llama_get_logits_ith(self._context, i)
                    rows.append(np.ctypeslib.as_array(row, (self._vocab,)).copy())
            llama_cpp.llama_batch_free(batch)
            if failed:
                raise EdgeRuntimeError(f"llama.cpp gives up at token {start + at} ({failed})", "internal")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with quiet():
            llama_cpp.llama_free(self._context)
            llama_cpp.llama_model_free(self._model)
