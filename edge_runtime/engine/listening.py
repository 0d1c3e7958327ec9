"""A spoken question, taken in while it is being spoken by engines that can, and at its end by others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from numpy.typing import NDArray

    from edge_runtime.engine.model import Model
    from edge_runtime.engine.protocol import Engine, Piece, Request


class Listening:
    """Made by `Model.listen`: feed it, then finish it once."""

    def __init__(
        self,
        model: Model,
        engine: Engine,
        before: Sequence[Mapping[str, Any]],
        prompt: str,
        options: Mapping[str, Any],
    ) -> None:
        self._model, self._before, self._prompt, self._options = model, before, prompt, options
        self._samples: list[NDArray[np.float32]] = []
        self._live: Any = None
        begin = getattr(engine, "listen", None)
        if begin is not None:
            # `chat` makes the request; this engine only hands it back.
            request = type(model)(cast("Engine", _Requests())).chat(self._messages(np.zeros(1, np.float32)), **options)
            try:
                self._live = begin(cast("Request", request))
            except EdgeRuntimeError as error:
                if error.code == "unsupported_media":
                    raise

    def feed(self, samples: NDArray[np.float32]) -> None:
        """Takes any number of samples, float32 `[n]`, mono, in -1..1, at 16 kHz.

        Raises:
            EdgeRuntimeError: `too_large`: the sound is longer than the model takes.
        """
        if self._live is not None:
            self._live.feed(samples)
        else:
            self._samples.append(samples)

    def finish(self) -> Generator[Piece, None, None]:
        """The sound is over: the pieces of the answer, as `Model.chat` gives them.

        Raises:
            EdgeRuntimeError: As for `chat`.
        """
        if self._live is not None:
            answer: Generator[Piece, None, None] = self._live.finish()
            return answer
        samples = np.concatenate(self._samples) if self._samples else np.zeros(0, np.float32)
        return self._model.chat(self._messages(samples), **self._options)

    def _messages(self, samples: NDArray[np.float32]) -> list[Mapping[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "audio", "audio": samples}]
        if self._prompt:
            content.append({"type": "text", "text": self._prompt})
        return [*self._before, {"role": "user", "content": content}]


class _Requests:
    """In the place of an engine: gives requests back as they are."""

    def run(self, request: Request) -> Request:
        return request
