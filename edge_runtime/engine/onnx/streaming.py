"""Soft tokens of a sound while it is still going on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.engine.onnx.session import freeing
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.gemma.audio import TOKEN_STRIDE, LogMelStream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.gemma.audio import LogMel


class AudioStream:
    """Takes a sound as it comes and gives its soft tokens as soon as they are final.

    All of them together are those of the whole clip. The state between runs is that of the graph and always of one
    size; apart from it a few frames wait for the next run.
    """

    def __init__(self, session: Any, log_mel: LogMel, tokens: int) -> None:
        """A stream over an open audio tower.

        Args:
            session: The tower's `InferenceSession`.
            log_mel: Its front end.
            tokens: Runs of the tower are over so many soft tokens, of 40 ms each, or a multiple.
        """
        self._session, self._log_mel, self._tokens = session, log_mel, tokens
        features, *state = session.get_outputs()
        self._outputs = [features.name, *(value.name for value in state)]
        self._none = np.zeros((0, features.shape[-1]), np.float32)
        self._frames: NDArray[np.float32]
        self._begin()

    @property
    def room(self) -> int:
        """Samples that `push` still takes before `finish`: a clip can't be longer than the model's 30 s."""
        return self._log_mel.max_samples - self._samples

    @property
    def state_bytes(self) -> int:
        """Size of what is kept between runs, 0 before the first."""
        return sum(value.nbytes for value in self._state.values())

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes any number of samples.

        Args:
            samples: float32 `[n]`, mono, in -1..1, at the model's rate.

        Returns:
            Soft tokens, float32 `[some or none, hidden]`.

        Raises:
            EdgeRuntimeError: There is no `room` for so many; none of them was taken.
        """
        if len(samples) > self.room:
            seconds = self._log_mel.max_samples / self._log_mel.sampling_rate
            raise EdgeRuntimeError(f"the sound goes on for over {seconds:.0f} s: end it and begin another", "too_large")
        self._samples += len(samples)
        self._frames = np.concatenate([self._frames, self._mel.push(samples)])
        step = self._tokens * TOKEN_STRIDE
        return self._run(len(self._frames) // step * step)

    def finish(self) -> NDArray[np.float32]:
        """The soft tokens that are left, float32 `[some or none, hidden]`; what is pushed now begins another clip."""
        tokens = self._run(len(self._frames))
        self._begin()
        return tokens

    def _begin(self) -> None:
        self._samples = 0
        self._mel = LogMelStream(self._log_mel)
        self._frames = np.zeros((0, self._log_mel.num_mels), np.float32)
        self._state: dict[str, NDArray[Any]] = {}

    def _run(self, count: int) -> NDArray[np.float32]:
        if not count:
            return self._none
        inputs = {"input_features": self._frames[None, :count], "input_features_mask": np.ones((1, count), np.bool_)}
        tokens: NDArray[np.float32]
        tokens, *state = self._session.run(self._outputs, inputs | self._state, freeing(self._session))
        self._state = {
            name.replace("present", "past"): value for name, value in zip(self._outputs[1:], state, strict=True)
        }
        self._frames = self._frames[count:].copy()
        return tokens
