"""The quantised forms of a GGUF and their logits, all through llama.cpp.

Needs the packages of the `bench` extra: gguf, which reads the files, and llama-cpp-python, which is llama.cpp.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING, Any, Self

import gguf
import llama_cpp
import numpy as np

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.evaluation.exchanges import MODALITIES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.evaluation.exchanges import Exchange
    from edge_runtime.evaluation.kld import Reader

_CONTEXT = 4096
_BATCH = 512


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
