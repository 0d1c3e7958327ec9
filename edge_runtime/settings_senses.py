"""The settings of microphones, cameras and the voice; see `settings`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge_runtime.settings_file import one_of, within


@dataclass(frozen=True, slots=True)
class MicrophoneSettings:
    """One `[[microphones]]`: what it hears, when, and what becomes of it."""

    name: str = field(metadata={"topic": "one level"})
    """What requests and events call it."""
    device: str | None = None
    """Name of the sound input or a part of it, or its number; left out, the sound system's default."""
    mode: str = field(default="push-to-talk", metadata=one_of("push-to-talk", "voice", "wake-word"))
    """What makes it listen: a request, speech, or a wake word. A request does so in every mode."""
    wake_words: tuple[str, ...] = ()
    """`okay_nabu`, `hey_jarvis`, `hey_mycroft`, `alexa`, or files of microWakeWord (the extra `wake`)."""
    wake_threshold: float | None = field(default=None, metadata=within(0.01, 1.0))
    """Probability from which a wake word was said: lower hears more and errs more. Left out: each model's own."""
    action: str = field(default="ask", metadata=one_of("ask", "transcribe"))
    """What becomes of what is said: it is written down and answered, or written down only."""
    language: str = "English"
    """What is spoken, by its English name."""
    system: str | None = None
    """How to answer: the system message."""
    max_tokens: int | None = field(default=None, metadata=within(1, 1_000_000))
    """Longest answer; left out, the model's own limit."""
    speak: bool = True
    """Whether answers are read aloud, where there is a voice."""
    barge_in: bool = True
    """Whether speech during an answer ends it and is heard. Needs echo cancellation; without it a wake word does so."""
    echo_cancelled: bool | None = None
    """Whether what it hears is free of our own voice: a conference microphone does that by itself. Left out: as the
    sound server says. Where it is not, nothing but a wake word is heard while an answer is spoken."""
    threshold: float = field(default=0.5, metadata=within(0.05, 0.95))
    """Probability from which sound is speech: higher where a television talks, lower for a quiet speaker."""
    pause_s: float = field(default=0.7, metadata=within(0.2, 5.0))
    """A pause this long ends what is said: longer for who thinks while talking, shorter for quick commands."""
    min_speech_s: float = field(default=0.25, metadata=within(0.05, 5.0))
    """Less speech than this was a cough or a knock."""
    max_s: float = field(default=29.0, metadata=within(1.0, 29.0))
    """Longest utterance: the model hears half a minute at a time."""
    patience_s: float = field(default=5.0, metadata=within(0.5, 60.0))
    """After a wake word or a request without speech, how long it is waited for."""


@dataclass(frozen=True, slots=True)
class CameraSettings:
    """One `[[cameras]]`: where it is, and what is asked of it without being asked."""

    name: str = field(metadata={"topic": "one level"})
    """What requests and events call it."""
    source: str
    """`/dev/video0`, `rtsp://...`, `http://...` (MJPEG or one picture), a file, `csi:0` for a Jetson's camera, or
    `gst:` and a GStreamer pipeline."""
    interval_s: float | None = field(default=None, metadata=within(0.1, 86_400))
    """Seconds from one look to the next. Left out: it is not watched, it answers requests."""
    on_change: bool = True
    """Whether a look leads to a question only when something has changed since the last one."""
    rest_s: float = field(default=0.0, metadata=within(0, 86_400))
    """Seconds after a question without another one; a change meanwhile counts afterwards."""
    prompt: str | None = None
    """What is asked when it is watched; left out, what `describe` asks."""
    schema: dict[str, Any] | None = None
    """JSON schema of the answers: then equal answers are equal whatever the words, and `event/frame` carries them."""
    max_tokens: int | None = field(default=None, metadata=within(1, 1_000_000))
    """Longest answer when it is watched; left out, the model's own limit."""
    change_area: float = field(default=0.006, metadata=within(0.0005, 1.0))
    """Part of the picture that makes a change: 0.006 is a person across a yard."""
    change_levels: float = field(default=10.0, metadata=within(1, 255))
    """Difference in brightness, of 255, that counts."""
    width: int | None = field(default=None, metadata=within(16, 16_384))
    """Wanted width, with `height`, where the source gives a choice: V4L2, GStreamer."""
    height: int | None = field(default=None, metadata=within(16, 16_384))
    """Wanted height."""
    turn: int = field(default=0, metadata=one_of(0, 90, 180, 270))
    """Degrees by which pictures are turned clockwise."""
    max_pixels: int = field(default=1920 * 1080, metadata=within(1024, 50_000_000))
    """Pictures are made smaller than this."""
    open_s: float = field(default=10.0, metadata=within(0.5, 120))
    """The source must answer within so many seconds."""
    read_s: float = field(default=5.0, metadata=within(0.5, 600))
    """The source must send a picture at least this often; one that does not is opened again."""


@dataclass(frozen=True, slots=True)
class SpeechSettings:
    """The box's own voice."""

    engine: str = field(default="auto", metadata=one_of("auto", "espeak-ng", "piper", "off"))
    """Which program speaks; `auto` is piper when `voice` is one of its files, else espeak-ng if it is installed."""
    voice: str | None = None
    """A voice of espeak-ng, such as `en-us`, or the path of a piper voice (`.onnx`)."""
    device: str | None = None
    """Name of the sound output or a part of it, or its number; left out, the sound system's default."""
    words_per_minute: int = field(default=165, metadata=within(80, 450))
    """How fast espeak-ng speaks."""
