"""Speech by Debian's small voices, noise from a seed, and a sound server of our own to play them into."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import soxr

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RATE = 16_000
LOUDNESS = 0.05
"""Root mean square of the speech itself: somebody across a room."""


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@functools.cache
def speech(text: str, voice: str = "en-us", words_per_minute: int = 165) -> NDArray[np.float32]:
    """Spoken by espeak-ng, or flite for `flite:<voice>`; float32 at 16 kHz, silence at both ends cut off."""
    if voice.startswith("flite:"):
        needs("flite")
        wav = subprocess.run(
            ["flite", "-voice", voice.removeprefix("flite:"), "-t", text, "-o", "/dev/stdout"],
            capture_output=True, check=True,
        ).stdout  # fmt: skip
    else:
        needs("espeak-ng")
        wav = subprocess.run(
            ["espeak-ng", "-v", voice, "-s", str(words_per_minute), "--stdout", text], capture_output=True, check=True
        ).stdout
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    samples = soxr.resample(samples, rate, RATE).astype(np.float32)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    spoken: NDArray[np.float32] = samples * np.float32(LOUDNESS / np.sqrt((samples**2).mean()))
    spoken.setflags(write=False)
    return spoken


def silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(round(seconds * RATE), np.float32)


def noise(kind: str, count: int, loudness: float, seed: int = 0) -> NDArray[np.float32]:
    """`white`, a `fan` (rumble and hum), knocks and `clicks`; of that root mean square."""
    random = np.random.default_rng(seed)
    time_s = np.arange(count) / RATE
    if kind == "white":
        sound = random.normal(size=count)
    elif kind == "fan":
        spectrum = np.fft.rfft(random.normal(size=count)) / (1 + (np.fft.rfftfreq(count, 1 / RATE) / 300) ** 2)
        sound = np.fft.irfft(spectrum, count)
        sound = sound / sound.std() + 0.7 * np.sin(2 * np.pi * 100 * time_s)
    else:
        sound = 0.05 * random.normal(size=count)
        for start in random.integers(0, count - 400, max(1, count // 8000)):
            sound[start : start + 300] += 4 * random.normal(size=300) * np.exp(-np.arange(300) / 40)
    scaled: NDArray[np.float32] = (sound * (loudness / np.sqrt((sound**2).mean()))).astype(np.float32)
    return scaled


ALSA = """
pcm.pulse { type pulse }
ctl.pulse { type pulse }
pcm.!default { type pulse hint { show on description "Default" } }
ctl.!default { type pulse }
pcm.yard_camera { type pulse device "yard.monitor" hint { show on description "Yard" } }
"""


class SoundServer:
    """A PulseAudio of our own: the microphone hears the sink `room`, and what we say is in `out`."""

    def __init__(self, folder: Path, environment: pytest.MonkeyPatch) -> None:
        needs("pulseaudio", "pactl", "pacat")
        self._folder = folder
        self._socket = folder / "pulse.socket"
        self._players: list[subprocess.Popen[bytes]] = []
        config = folder / "asound.conf"
        config.write_text(ALSA)
        folder.chmod(0o700)
        environment.setenv("PULSE_SERVER", f"unix:{self._socket}")
        environment.setenv("PULSE_COOKIE", str(folder / "cookie"))
        environment.setenv("ALSA_CONFIG_PATH", str(config))
        self._environment = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "PULSE_RUNTIME_PATH": str(folder)}
        self.start()

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        modules = [
            f"module-native-protocol-unix socket={self._socket} auth-anonymous=1",
            "module-null-sink sink_name=room rate=48000 channels=1",
            "module-null-sink sink_name=yard rate=48000 channels=1",
            "module-null-sink sink_name=out rate=48000 channels=1",
            "module-remap-source source_name=mic master=room.monitor",
        ]
        arguments = [
            "--daemonize=no",
            "--exit-idle-time=-1",
            "--use-pid-file=no",
            "--disable-shm=yes",
            "--log-level=error",
        ]
        self._server = subprocess.Popen(
            ["pulseaudio", "-n", *arguments, *(part for module in modules for part in ("-L", module))],
            env=os.environ | self._environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while subprocess.run(["pactl", "set-default-source", "mic"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "pulseaudio does not start"
            time.sleep(0.05)
        self.control("set-default-sink", "out")
        for sink in ("room", "yard", "out"):  # a null sink that nobody listens to sleeps for two seconds at a time
            self._players.append(
                subprocess.Popen(
                    ["pacat", "--record", f"--device={sink}.monitor", "--latency-msec=20"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )

    def control(self, *arguments: str) -> str:
        return subprocess.run(["pactl", *arguments], capture_output=True, check=True).stdout.decode()

    def kill(self) -> None:
        self._server.kill()
        self._server.wait()

    def freeze(self) -> None:
        self._server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def play(self, samples: NDArray[np.float32], sink: str = "room") -> subprocess.Popen[bytes]:
        """Sounds from about now on."""
        command = ["pacat", "--playback", f"--device={sink}", "--format=float32le", f"--rate={RATE}", "--channels=1"]
        player = subprocess.Popen([*command, "--latency-msec=50"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._players.append(player)

        def feed() -> None:
            with contextlib.suppress(OSError):
                player.stdin.write(samples.tobytes())
                player.stdin.close()

        threading.Thread(target=feed, daemon=True).start()
        return player

    def calm(self) -> None:
        """As it was when it started, for the next test."""
        self.thaw()
        if self._server.poll() is not None:
            self.start()
        for line in self.control("list", "short", "modules").splitlines():
            number, name = line.split("\t")[:2]
            if name in {"module-loopback", "module-echo-cancel"}:
                self.control("unload-module", number)
        self.control("set-default-source", "mic")
        self.control("set-default-sink", "out")

    def listen(self, sink: str = "out") -> Recorder:
        return Recorder(sink)

    def close(self) -> None:
        self.thaw()
        for player in self._players:
            player.kill()
            player.wait()
        self.kill()


class Recorder:
    """What is heard from a sink, from now on."""

    def __init__(self, sink: str) -> None:
        command = [
            "pacat",
            "--record",
            f"--device={sink}.monitor",
            "--format=float32le",
            f"--rate={RATE}",
            "--channels=1",
        ]
        self._process: Any = subprocess.Popen([*command, "--latency-msec=20"], stdout=subprocess.PIPE)
        self.pieces: list[tuple[float, NDArray[np.float32]]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._process.stdout.fileno(), 1280):
            piece = np.frombuffer(data[: len(data) // 4 * 4], np.float32)
            self.pieces.append((time.monotonic(), piece))

    def loud(self) -> list[float]:
        """When it was loud."""
        return [when for when, piece in self.pieces if len(piece) and np.abs(piece).max() > 0.01]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._process.stdout.close()
