"""Ears, voice and eyes in a process that may not make memory both writable and executable, like the daemon."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from tests.perception.sounds import needs
from tests.perception.test_camera import write_video

if TYPE_CHECKING:
    from pathlib import Path

    from tests.perception.sounds import SoundServer

DENY = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    sys.exit(77)
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    pass
else:
    sys.exit("it is not denied")
"""

SENSES = """
import time
from edge_runtime.perception.camera import Camera, CameraOptions
from edge_runtime.perception.ear import Ear, EarOptions
from edge_runtime.perception.speaker import Speaker
from edge_runtime.perception.voice import find_voice
with Ear("kitchen", EarOptions(), print) as ear:
    while ear.status.state != "open":
        time.sleep(0.02)
    assert len(ear.push_to_talk(seconds=0.2).sound()) > 3000
speech = Speaker(find_voice()).say("Hello.")
assert speech.over.wait(10)
assert speech.heard
with Camera("door", CameraOptions(sys.argv[1])) as camera:
    assert camera.latest().image.size == (320, 180)
    assert camera.latest().luma(64, 36).shape == (36, 64)
"""

FILES = """
from edge_runtime.media import load_audio
for file in sys.argv[1:]:
    assert len(load_audio(file)) == 16000, file
"""


def run(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DENY + script, *arguments], capture_output=True, check=False, timeout=60
    )
    if done.returncode == 77:
        pytest.skip("this kernel cannot deny it: Linux 6.3 or later is needed")
    assert done.returncode == 0, done.stderr.decode()


def test_senses(sound_server: SoundServer, tmp_path: Path):
    needs("espeak-ng")
    write_video(tmp_path / "video.mp4", "libx264")
    run(SENSES, str(tmp_path / "video.mp4"))


def test_sound_files(tmp_path: Path):
    files = []
    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.1 * np.sin(np.arange(16_000) / 5), 16_000, format=kind)
        files.append(tmp_path / f"sound.{kind.lower()}")
        files[-1].write_bytes(buffer.getvalue())
    run(FILES, *map(str, files))
