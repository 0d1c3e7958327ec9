"""Prompts of every kind for comparing the engine with transformers: drawn from the built-in model's own generators."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from edge_runtime import media
from models.nano.training import dialog, images, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass
class Case:
    """One prompt: messages in Hugging Face's form (media as PIL images and float32 arrays), tools, thinking."""

    kind: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    think: bool = False


def speech(words: str, rng: random.Random) -> NDArray[np.float32]:
    """`words` spoken by espeak-ng; without it, sounds with the pitch, formants and pauses of speech."""
    if espeak := shutil.which("espeak-ng"):
        voice = rng.choice(["en-us", "en-gb", "en-us+f2", "en-us+m3"])
        command = [espeak, "-v", voice, "-s", str(rng.randint(130, 180)), "--stdout", words]
        wav = subprocess.run(command, capture_output=True, check=True).stdout
        # A WAV from a pipe has no true length in its header; the samples start after 44 bytes.
        samples = np.frombuffer(wav[44 : len(wav) - len(wav) % 2], np.int16).astype(np.float32) / 32768
        stream = io.BytesIO()
        soundfile.write(stream, samples, 22_050, format="WAV", subtype="PCM_16")
        return media.load_audio(stream.getvalue())
    return _babble(len(words.split()), rng)


def _babble(words: int, rng: random.Random) -> NDArray[np.float32]:
    noise = np.random.default_rng(rng.randrange(1 << 30))
    parts = []
    for _ in range(max(words, 2) * 2):
        t = np.arange(int(rng.uniform(0.08, 0.2) * 16_000)) / 16_000
        pitch, formants = rng.uniform(90, 220), (rng.uniform(300, 800), rng.uniform(900, 2300))
        wave = sum(
            np.sin(2 * np.pi * pitch * k * t) * sum(np.exp(-(((pitch * k - f) / 150) ** 2)) for f in formants)
            for k in range(1, 20)
        )
        parts += [0.2 * wave * np.hanning(len(t)), np.zeros(rng.randint(0, 1600))]
    clip = np.concatenate(parts)
    return np.clip(clip + noise.normal(0, 0.003, len(clip)), -1, 1).astype(np.float32)


def _user(*items: str | Image | NDArray[np.float32]) -> dict[str, Any]:
    content = [
        {"type": "text", "text": item}
        if isinstance(item, str)
        else {"type": "audio", "audio": item}
        if isinstance(item, np.ndarray)
        else {"type": "image", "image": item}
        for item in items
    ]
    return {"role": "user", "content": content}


@cache
def _utterances(kinds: tuple[str, ...] | None = None) -> list[text.Utterance]:
    return text.corpus(20_261, 400, heldout=True, kinds=kinds)


def _example(kind: str, example: dialog.Example) -> Case:
    tools = [dialog.tool_schema(name) for name in example.tools]
    return Case(kind, [dict(message) for message in example.messages], tools, example.think)


def _picture(rng: random.Random) -> tuple[Image, str]:
    sample = images.render(rng, heldout=True)
    return sample.image, rng.choice(sample.questions)[0]


def _text(rng: random.Random) -> Case:
    if rng.random() < 0.4:
        return _example("text", dialog.fact_example(rng))
    utterance = rng.choice(_utterances(("faq", "math")))
    return _example("text", dialog.ask(utterance.written, "", "", system=rng.choice(["", "Answer briefly."])))


def _image(rng: random.Random) -> Case:
    image, question = _picture(rng)
    if rng.random() < 0.5:  # sizes that the processor has to bring to its own
        image = image.resize((rng.randint(60, 900), rng.randint(60, 900)))
    return Case("image", [_user(image, question)])


def _audio(rng: random.Random) -> Case:
    utterance = rng.choice(_utterances())
    clip = speech(utterance.spoken, rng)
    if utterance.tool and rng.random() < 0.4:
        return Case(
            "audio", [_user(clip)], [dialog.tool_schema(name) for name in dialog.pick_tools(rng, utterance.tool)]
        )
    return Case("audio", [_user(clip, rng.choice([dialog.ASR_PROMPT, *dialog.ASR_SHORT]))])


def _mixed(rng: random.Random) -> Case:
    image, question = _picture(rng)
    clip = speech(question, rng)
    other = speech(rng.choice(_utterances()).spoken, rng)
    forms: list[Callable[[], list[dict[str, Any]]]] = [
        lambda: [_user(image, clip)],
        lambda: [_user(clip, image)],
        lambda: [_user(image, question, other, "Transcribe the audio.")],
        lambda: [_user(clip, "First listen.", image, other, question)],
        lambda: [
            _user(image, question),
            {"role": "assistant", "content": "Yes."},
            _user(other, "Transcribe the audio."),
        ],
    ]
    return Case("mixed", rng.choice(forms)())


def _multi_turn(rng: random.Random) -> Case:
    answered = _utterances(("faq", "math"))
    # Some histories are longer than window and chunk together, so that the windowed cache has to move.
    turns = rng.choice([2, 3, 4, 30, 45])
    example = dialog.history_example(rng, rng.sample(answered, turns))
    return _example("multi_turn", example)


def _tools(rng: random.Random) -> Case:
    if rng.random() < 0.3:
        return _example("tools", dialog.response_example(rng))
    utterance = rng.choice(_utterances(("cmd",)))
    return _example("tools", dialog.tool_call_example(rng, utterance, utterance.written, think=rng.random() < 0.3))


MAKERS: dict[str, Callable[[random.Random], Case]] = {
    "text": _text,
    "image": _image,
    "audio": _audio,
    "mixed": _mixed,
    "multi_turn": _multi_turn,
    "tools": _tools,
}


def cases(kind: str, count: int, seed: int = 1) -> list[Case]:
    """`count` prompts of one kind; the same for the same seed (speech: with the same synthesizer)."""
    rng = random.Random(f"{kind} {seed}")
    return [MAKERS[kind](rng) for _ in range(count)]
