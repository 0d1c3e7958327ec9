from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.video import load_video
from tests.videos import brightness, make_video

if TYPE_CHECKING:
    from pathlib import Path


def test_a_picture_a_second(tmp_path: Path):
    path = make_video(tmp_path / "a.mp4", 4.5, audio=True)
    for source in (path, str(path), path.read_bytes()):
        frames = load_video(source)
        assert [frame.time for frame in frames] == ["00:00", "00:01", "00:02", "00:03", "00:04"]
        for frame in frames:
            assert frame.image.size == (320, 240)
            assert abs(int(np.asarray(frame.image).mean()) - brightness(frame.seconds)) < 6


def test_other_forms_and_rates(tmp_path: Path):
    for name, fps in [("a.mkv", 30), ("a.avi", 3), ("a.mov", 1)]:
        assert len(load_video(make_video(tmp_path / name, 3, fps=fps))) == 3


def test_a_minute_is_the_most(tmp_path: Path):
    frames = load_video(make_video(tmp_path / "a.mp4", 60, fps=2, size=(64, 48)))
    assert [frames[0].time, frames[-1].time, len(frames)] == ["00:00", "00:59", 60]
    with pytest.raises(EdgeRuntimeError, match="lasts longer than 60 s") as error:
        load_video(make_video(tmp_path / "b.mp4", 63, fps=2, size=(64, 48)))
    assert error.value.code == "too_large"


def test_fewer_pictures_are_spread_over_the_whole(tmp_path: Path):
    frames = load_video(make_video(tmp_path / "a.mp4", 12, size=(64, 48)), max_frames=4)
    assert [frame.time for frame in frames] == ["00:00", "00:03", "00:06", "00:09"]


def test_what_is_no_video(tmp_path: Path):
    soundfile.write(tmp_path / "sound.wav", np.zeros(1600), 16_000)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n")
    cut = make_video(tmp_path / "a.mp4", 1).read_bytes()[:200]
    for source, line in [
        (tmp_path / "none.mp4", "no such file"),
        (tmp_path / "sound.wav", "has no video"),
        (tmp_path / "text.mp4", "not a video"),
        (tmp_path / "list.m3u8", "not a video|has no video"),
        ("http://127.0.0.1/a.mp4", "nothing is fetched"),
        (b"", "is empty"),
        (cut, "not a video"),
        (3, "path or bytes"),
    ]:
        with pytest.raises(EdgeRuntimeError, match=line) as error:
            load_video(source)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


def test_pictures_that_are_too_large(tmp_path: Path):
    with pytest.raises(EdgeRuntimeError, match="320 x 240, more than 1000 pixels"):
        load_video(make_video(tmp_path / "a.mp4", 1), max_pixels=1000)


def test_without_the_extra(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EdgeRuntimeError, match=r"pip install edge-runtime\[camera\]"):
        load_video(tmp_path / "a.mp4")
