"""Wake words, by microWakeWord: small networks that hear one phrase each (the extra `wake`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

EXTRA = "wake words need the extra wake: pip install edge-runtime[wake] (glibc 2.35 or later)"


class WakeWords:
    """Hears any of some wake words; one for each microphone."""

    def __init__(self, words: Sequence[str], threshold: float | None = None) -> None:
        """Loads the models: some 70 kB each.

        Args:
            words: Models that come with pymicro-wakeword (`okay_nabu`, `hey_jarvis`, `hey_mycroft`, `alexa`), or files:
                the JSON beside a `.tflite` of microWakeWord.
            threshold: Probability from which it was said, lower to hear more and be wrong more often; None is each
                model's own.

        Raises:
            EdgeRuntimeError: The extra isn't installed, or there is no such word.
        """
        package = _package()
        self._features = package.MicroWakeWordFeatures()
        self._models: list[tuple[str, Any]] = []
        for word in words:
            model = _load(package, word)
            if threshold is not None:
                model.probability_cutoff = threshold
            self._models.append((model.wake_word, model))

    def __call__(self, block: NDArray[np.float32]) -> str | None:
        """The wake word that the block, float32 `[n]` in -1..1 at 16 kHz, completes."""
        pcm = (np.clip(block, -1.0, 1.0) * 32767).astype("<i2").tobytes()
        heard = None
        for features in self._features.process_streaming(pcm):
            for word, model in self._models:
                if model.process_streaming(features):
                    heard = word
        if heard is not None:
            self.reset()  # else it is heard again in the next blocks
        return heard

    def reset(self) -> None:
        """Forgets what it heard."""
        self._features.reset()
        for _, model in self._models:
            model.reset()


def wake_words() -> list[str]:
    """The words that are there by name; [] without the extra."""
    try:
        return sorted(model.value for model in _package().Model)
    except EdgeRuntimeError:
        return []


def _load(package: Any, word: str) -> Any:
    try:
        if word in wake_words():
            return package.MicroWakeWord.from_builtin(package.Model(word))
        if Path(word).is_file():
            return package.MicroWakeWord.from_config(word)
    except (OSError, ValueError, KeyError) as error:
        raise EdgeRuntimeError(f"wake word {word}: cannot be loaded: {error}") from None
    raise EdgeRuntimeError(f"wake word {word}: no such model or file; there are {', '.join(wake_words())}")


def _package() -> Any:
    try:
        import pymicro_wakeword  # noqa: PLC0415 - an extra
    except ImportError:
        raise EdgeRuntimeError(EXTRA) from None
    return pymicro_wakeword
