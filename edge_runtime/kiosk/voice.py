"""The box's voice for a page: one sentence to a WAV file."""

from __future__ import annotations

import io
import shutil
import threading
import wave
from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.source import SourceLost
from edge_runtime.perception.voice import find_voice

if TYPE_CHECKING:
    from edge_runtime.settings_senses import SpeechSettings

# Programs that speak at a time: more would only make all of them slow.
MOST = 2
# espeak-ng's own names of languages, where they are not the code.
_ESPEAK = {"zh": "cmn", "no": "nb", "en": "en-us"}


class KioskVoice:
    """Speaks what pages ask for. Safe in any thread."""

    def __init__(self, settings: SpeechSettings) -> None:
        self._settings = settings
        self._places = threading.Semaphore(MOST)

    @property
    def there(self) -> bool:
        """Whether the box has a voice."""
        if self._settings.engine == "off":
            return False
        if self._piper:
            return self._found()
        return any(shutil.which(name) for name in ("espeak-ng", "espeak"))

    @property
    def _piper(self) -> bool:
        return (self._settings.voice or "").endswith(".onnx")

    def _found(self) -> bool:
        try:
            find_voice(self._settings.voice)
        except EdgeRuntimeError:
            return False
        return True

    def wav(self, sentence: str, language: str) -> bytes:
        """A sentence as a WAV file, 16 bits, mono. Takes a while.

        Args:
            sentence: What is said.
            language: ISO 639-1 code of its language. A voice of piper speaks its own, whatever is asked.

        Raises:
            EdgeRuntimeError: There is no voice, or it failed.
        """
        named = self._settings.voice
        name = named if self._piper or (named and named.startswith(language)) else _ESPEAK.get(language, language)
        with self._places:
            synthesis = find_voice(name, self._settings.words_per_minute).begin()
            try:
                sound = b"".join(synthesis.sound(iter([sentence])))
            except SourceLost as error:
                raise EdgeRuntimeError(f"the voice failed: {error}") from None
            finally:
                synthesis.kill()
        file = io.BytesIO()
        with wave.open(file, "wb") as written:
            written.setnchannels(1)
            written.setsampwidth(2)
            written.setframerate(synthesis.rate)
            written.writeframes(sound)
        return file.getvalue()
