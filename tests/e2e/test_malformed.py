"""Whatever comes, it gets exactly one answer, and the next plain question is answered as if nothing had been."""

from __future__ import annotations

import base64
import io
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import edge_runtime
from tests.e2e.conftest import BASE
from tests.e2e.crowd import Crowd, measured

ASSETS = Path(edge_runtime.__file__).parent / "demo_assets"
CODES = {"ok", "bad_request", "too_large", "unsupported_media"}


def image(form, size=(64, 64), mode="RGB", **options):
    stream = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else 1).save(stream, form, **options)
    return stream.getvalue()


def sound(form, seconds=0.4, rate=16_000, channels=1):
    stream = io.BytesIO()
    samples = 0.1 * np.sin(np.arange(int(rate * seconds)) / 5)
    soundfile.write(stream, np.stack([samples] * channels, axis=1), rate, format=form)
    return stream.getvalue()


def silence_bomb():
    """Minutes of many channels in a few hundred kilobytes."""
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", 96_000, 8, format="FLAC", subtype="PCM_16") as file:
        block = np.zeros((96_000, 8), np.float32)
        for _ in range(30):
            file.write(block)
    return stream.getvalue()


class Fuzz:
    """Payloads made of good ones."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        sign = base64.b64encode((ASSETS / "sign.png").read_bytes()).decode()
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        self.texts = [
            json.dumps(body).encode()
            for body in (
                {"prompt": "When does the zoo open?", "max_tokens": 3},
                {"prompt": "Read the sign.", "images": [sign], "max_tokens": 3, "session": "s", "stream": True},
                {"prompt": "Turn on the lamp.", "tools": tools, "max_tokens": 3, "system": "x", "priority": 2},
            )
        ]
        self.sounds = [sound(form) for form in ("WAV", "FLAC", "OGG", "MP3")]
        self.images = [
            image("PNG"),
            image("JPEG"),
            image("WEBP"),
            image("PNG", mode="P"),
            image("JPEG", progressive=True),
        ]

    def payload(self):
        """A topic and what to send there."""
        topic = self.rng.choice(["ask", "transcribe", "describe"])
        good = self.rng.choice({"ask": self.texts, "transcribe": self.sounds, "describe": self.images}[topic])
        return topic, self.rng.choice([self.cut, self.changed, self.noise, self.other, self.spliced])(good)

    def cut(self, good):
        return good[: self.rng.randrange(len(good))]

    def changed(self, good):
        data = bytearray(good)
        for _ in range(self.rng.randint(1, 20)):
            data[self.rng.randrange(len(data))] = self.rng.randrange(256)
        return bytes(data)

    def noise(self, good):
        return self.rng.randbytes(self.rng.randrange(200))

    def other(self, good):
        return self.rng.choice([*self.texts, *self.sounds, *self.images])

    def spliced(self, good):
        at = self.rng.randrange(len(good))
        return good[:at] + self.rng.randbytes(self.rng.randrange(30)) + good[at:]


BAD = [
    ("ask", b"", "bad_request"),
    ("ask", b"\xff\xfe\xfd", "bad_request"),
    ("ask", b'{"prompt": "\xc3\x28"}', "bad_request"),
    ("ask", b'{"prompt": "\\ud800"}', "bad_request"),
    ("ask", b'{"prompt": "x", "id": "\\u0000"}', "bad_request"),
    ("ask", b"[" * 100_000, "bad_request"),
    ("ask", b'{"a":' * 100_000, "bad_request"),
    ("ask", b'{"prompt": [' + b"[]," * 300_000 + b"[]]}", "too_large"),
    ("ask", b'{"prompt": "' + b"the museum " * 1_000_000 + b'"}', "too_large"),
    ("ask", b'{"prompt": "x", "seed": ' + b"9" * 4000 + b"}", "bad_request"),
    ("ask", b'{"prompt": "x", "schema": {}, "tools": [' + b"{}," * 9000 + b"{}]}", None),
    ("transcribe", b"RIFF\xff\xff\xff\xffWAVEfmt " + b"\xff" * 100, "unsupported_media"),
    ("transcribe", sound("WAV")[:43], "unsupported_media"),
    ("transcribe", sound("WAV", 0.2, 8000, 16)[:3000], "ok"),
    ("transcribe", image("PNG"), "unsupported_media"),
    ("describe", image("JPEG")[:200], "unsupported_media"),
    ("describe", image("PNG")[:70], "unsupported_media"),
    ("describe", image("GIF"), "unsupported_media"),
    ("describe", image("TIFF"), "unsupported_media"),
    ("describe", image("PNG", (13_000, 13_000), "1"), "too_large"),
    ("describe", b"\xff\xd8" + b"\xff" * 1_000_000, "unsupported_media"),
    ("describe", bytes(17 * 2**20), "too_large"),
]


@pytest.mark.parametrize("messages", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_malformed_messages_get_one_answer_each(box, messages):
    daemon, port = box
    fuzz = Fuzz(messages)
    with Crowd(port, 4, f"fuzz-{messages}") as crowd:
        for number, (topic, payload, _) in enumerate(BAD):
            crowd.wait_outstanding(2)
            crowd.ask(f"{BASE}/{topic}", payload, f"bad-{number}")
        crowd.wait()
        for number, (topic, payload, code) in enumerate(BAD):
            answer = json.loads(crowd.finals[f"bad-{number}"][0])
            if code is not None:
                assert answer.get("error", {}).get("code", "ok") == code, (topic, payload[:60], answer)
        for number in range(8):  # both towers are loaded, and have seen what is usual
            crowd.wait_outstanding(2)
            crowd.ask(f"{BASE}/describe", fuzz.images[number % 3], f"image-{number}")
            crowd.ask(f"{BASE}/transcribe", fuzz.sounds[number % 4], f"sound-{number}")
        crowd.wait()
        memory = daemon.memory_mb()
        started = time.monotonic()
        for number in range(messages - len(BAD)):
            crowd.wait_outstanding(12)
            topic, payload = fuzz.payload()
            crowd.ask(f"{BASE}/{topic}", payload, f"fuzz-{number}", number)
            crowd.say(f"{BASE}/cancel", fuzz.noise(b""))
        crowd.wait()
        measured(f"{messages} malformed messages", time.monotonic() - started)
        print(crowd.codes(), f"memory {memory:.0f} -> {daemon.memory_mb():.0f} MB")
        assert crowd.repeated() == {}
        assert set(crowd.codes()) <= CODES
        crowd.ask(f"{BASE}/ask", {"prompt": "When does the zoo open?"}, "plain")
        crowd.wait()
        assert "9 am" in json.loads(crowd.finals["plain"][0])["text"]
    assert daemon.memory_mb() - memory < 60


def test_bombs_are_refused_or_cost_what_the_limits_say(box):
    daemon, port = box
    with Crowd(port, 1, "bombs") as crowd:
        crowd.ask(f"{BASE}/describe", image("PNG"), "towers are loaded")
        crowd.ask(f"{BASE}/transcribe", sound("WAV"), "both of them")
        crowd.wait()
        daemon.forget_peak()
        before = daemon.memory_mb()
        crowd.ask(f"{BASE}/describe", image("PNG", (13_000, 13_000), "1"), "bomb")
        crowd.ask(f"{BASE}/describe", image("WEBP", (9000, 9000), lossless=True), "webp bomb")
        crowd.wait()
        assert crowd.codes()["too_large"] == 2
        assert daemon.memory_mb("VmHWM") - before < 60
        crowd.ask(f"{BASE}/describe", image("PNG", (3990, 3990), "P", transparency=0), "as large as may be")
        crowd.ask(f"{BASE}/transcribe", silence_bomb(), "many channels")
        crowd.wait()
        assert crowd.codes()["ok"] == 4
        print(f"bombs: {before:.0f}, at the peak {daemon.memory_mb('VmHWM'):.0f} MB")
        assert daemon.memory_mb("VmHWM") - before < 350


@pytest.mark.parametrize("megabytes", [40, pytest.param(100, marks=pytest.mark.slow)])
def test_a_huge_payload_does_not_reach_the_daemon(box, client, megabytes):
    daemon, port = box
    with Crowd(port, 1, f"huge-{megabytes}") as crowd:
        daemon.forget_peak()
        before = daemon.memory_mb()
        client.publish(f"{BASE}/transcribe", bytes(megabytes * 1_000_000))
        crowd.ask(f"{BASE}/ask", {"prompt": "When does the zoo open?"}, "plain")
        crowd.wait()
        assert daemon.memory_mb("VmHWM") - before < 60
