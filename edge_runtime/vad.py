"""Whether a moment of sound is speech: the Silero voice activity detector, on ONNX Runtime.

The model lies in `assets`: silero_vad_16k_op15.onnx of silero-vad 6.2.3, under the MIT licence, SHA-256 7ed98ddbad84.
ONNX Runtime is here anyway. A network is not fooled by fans, clicks and tunes, as detectors are that look at levels.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.media import SAMPLE_RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL = Path(__file__).parent / "assets" / "silero_vad.onnx"
BLOCK = 512
"""Samples that it looks at at a time: 32 ms."""
CONTEXT = 64
"""Samples of the block before that the model sees again."""


class VoiceActivity:
    """The detector of one microphone or recording: it remembers what it heard."""

    def __init__(self) -> None:
        """Loads the model, once in a process: 0.1 s and some 20 MB, of which most is ONNX Runtime's own."""
        self._session = _session()
        self._rate = np.array(SAMPLE_RATE, np.int64)
        self._context: NDArray[np.float32] = np.zeros(CONTEXT, np.float32)
        self._state: NDArray[np.float32] = np.zeros((2, 1, 128), np.float32)

    def __call__(self, block: NDArray[np.float32]) -> float:
        """The probability that the block is speech.

        Args:
            block: float32 `[512]` in -1..1 at 16 kHz, the next one.
        """
        sound = np.concatenate([self._context, block])
        feeds = {"input": sound[None], "state": self._state, "sr": self._rate}
        probability, self._state = self._session.run(None, feeds)
        self._context = sound[-CONTEXT:]
        return float(probability[0, 0])

    def reset(self) -> None:
        """Forgets what it heard: the next block isn't the continuation of the last one."""
        self._context = np.zeros(CONTEXT, np.float32)
        self._state = np.zeros((2, 1, 128), np.float32)


@functools.cache
def _session() -> Any:
    """The model; it keeps no state, so that all detectors share it."""
    import onnxruntime  # noqa: PLC0415 - heavy

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
