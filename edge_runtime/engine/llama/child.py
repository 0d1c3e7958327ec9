"""The child that a llama.cpp server runs in: `python -P child.py PARENT [PROGRAM ARGUMENT...]`.

Imports nothing of ours. With a program, becomes it. Without one, it is the server inside the package xllamacpp, set up
by a JSON object on standard input (`Options.plain`, with `port` and `key`). Either way the kernel kills it when the
thread that started it ends, and picks it first when memory runs out.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_NO_ORIGIN = "https://nobody.invalid"


def main() -> None:
    """Ties its life to the parent's, then serves."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the parent has gone already")
    with contextlib.suppress(OSError):  # a container may forbid it, or another system not know it
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    if command:
        os.execv(command[0], command)  # noqa: S606 - the program is the parent's choice
    _serve(json.load(sys.stdin))


def _serve(options: dict[str, Any]) -> None:
    try:
        import xllamacpp as llama  # noqa: PLC0415
    except ImportError as error:
        sys.exit(f"E xllamacpp cannot be loaded: {error}")
    try:
        server = llama.Server(_params(llama, options))
    except AttributeError as error:
        sys.exit(f"E this version of xllamacpp is too old or too new: {error}")
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent reads one line
        sys.exit(f"E {type(error).__name__}: {error}")
    assert server.listening_address  # noqa: S101 - and the name keeps the server alive
    while True:
        signal.pause()


def _params(llama: Any, options: dict[str, Any]) -> Any:
    params = llama.CommonParams()
    params.model.path = options["model"]
    params.port, params.hostnames = options["port"], ["127.0.0.1"]
    params.api_keys = [options["key"]]
    params.cors_origins, params.cors_origins_explicit, params.cors_credentials = _NO_ORIGIN, True, False
    params.ui, params.endpoint_slots, params.offline = False, False, True
    params.n_threads_http, params.n_parallel = 4, 1
    params.n_ctx, params.n_batch, params.n_ubatch = options["context"], options["batch"], options["batch"]
    params.n_ctx_checkpoints, params.cache_ram_mib, params.cache_idle_slots = 0, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"]
    params.cache_type_k = params.cache_type_v = getattr(llama.ggml_type, f"GGML_TYPE_{options['kv_type'].upper()}")
    params.fit_params, params.n_gpu_layers = False, options["gpu_layers"]
    if options["cpu_experts"]:
        layers = range(options["cpu_experts"])
        params.tensor_buft_overrides = ",".join(rf"blk\.{i}\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU" for i in layers)
    modes, lazy = llama.llama_load_mode, llama.llama_lazy_mode
    params.load_mode = modes.LLAMA_LOAD_MODE_MMAP if options["mapped"] else modes.LLAMA_LOAD_MODE_NONE
    params.lazy_mode = lazy.LLAMA_LAZY_MODE_ON if options["lazy"] else lazy.LLAMA_LAZY_MODE_OFF
    if options["projector"]:
        params.mmproj.path, params.mmproj_use_gpu = options["projector"], options["projector_on_gpu"]
        params.image_min_tokens = 1
    if options["drafter"]:
        params.speculative.draft.mparams.path = options["drafter"]
        name = options["draft_kind"].upper().replace("-", "_")
        params.speculative.types = [getattr(llama.common_speculative_type, f"COMMON_SPECULATIVE_TYPE_{name}")]
    return params


if __name__ == "__main__":
    main()
