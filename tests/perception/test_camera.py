"""Cameras as they are: they stall, go away, come back, send rubbish, want a password."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from edge_runtime import media
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception import camera as module
from edge_runtime.perception.camera import Camera, CameraOptions
from edge_runtime.perception.source import Backoff
from edge_runtime.perception.video import Video, redacted
from tests.perception.servers import MjpegCamera, RtspCamera, jpeg, number, numbered
from tests.perception.sounds import needs
from tests.perception.test_microphone import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

av = pytest.importorskip("av", reason="the extra camera is not installed")


@pytest.fixture
def mjpeg() -> Iterator[MjpegCamera]:
    camera = MjpegCamera()
    yield camera
    camera.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again after half a second rather than up to 30 s."""
    monkeypatch.setattr(module, "Backoff", lambda **_: Backoff(first_s=0.2, cap_s=0.5))


def refused(camera: Camera, seconds: float = 0.0) -> str:
    """Why there is no picture, as soon as that is known."""
    until(lambda: camera.status.detail or camera.status.state == "open")
    with pytest.raises(EdgeRuntimeError) as raised:
        camera.latest(timeout_s=seconds)
    return str(raised.value)


class TestMjpeg:
    @pytest.mark.parametrize("lengths", [True, False])
    def test_only_the_newest_picture_counts(self, mjpeg: MjpegCamera, lengths: bool):
        mjpeg.lengths = lengths
        with Camera("door", CameraOptions(mjpeg.url)) as camera:
            assert camera.latest().camera == "door"
            for _ in range(2):
                time.sleep(0.4)
                sent = mjpeg.sent
                frame = camera.latest()
                assert abs(number(frame.image) - sent) <= 4, "no backlog"
                assert time.monotonic() - frame.taken < 0.3
            assert camera.status.state == "open"

    def test_pictures_that_nobody_asks_for_are_not_decoded(self, mjpeg: MjpegCamera, monkeypatch: pytest.MonkeyPatch):
        with Camera("door", CameraOptions(mjpeg.url)) as camera:
            camera.latest()
            decoded = []
            monkeypatch.setattr(Video, "_decode", lambda video: decoded.append(len(video._group)))
            sent = mjpeg.sent
            until(lambda: mjpeg.sent > sent + 10)
            assert decoded == []
            camera._reader.newest()
            assert decoded == [1]

    def test_a_stalled_camera_is_noticed_and_found_again(self, mjpeg: MjpegCamera, impatient: None):
        with Camera("door", CameraOptions(mjpeg.url, read_s=1.0)) as camera:
            camera.latest()
            mjpeg.stalled = True
            stalled = time.monotonic()
            until(lambda: camera.status.state == "lost")
            assert 0.8 < time.monotonic() - stalled < 4.0
            assert camera.status.detail == f"{mjpeg.url}: silent for 1 s"
            assert refused(camera) == f"camera door: {camera.status.detail}"
            mjpeg.stalled = False
            assert abs(number(camera.latest(timeout_s=10).image) - mjpeg.sent) <= 4
            assert camera.snapshot()["losses"] == 1

    def test_one_that_is_switched_off_and_on(
        self, mjpeg: MjpegCamera, impatient: None, caplog: pytest.LogCaptureFixture
    ):
        states: list[str] = []
        with Camera("door", CameraOptions(mjpeg.url), on_change=lambda status: states.append(status.state)) as camera:
            camera.latest()
            mjpeg.close()
            until(lambda: camera.status.detail.endswith("Connection refused"))
            time.sleep(0.6)
            again = MjpegCamera(lambda n: numbered(n + 100), port=mjpeg.port)
            assert number(camera.latest(timeout_s=10).image) >= 95
            again.close()
        assert states[:3] == ["open", "lost", "open"]
        assert sum("is away" in record.message for record in caplog.records) <= 3, "attempts are not logged"

    @pytest.mark.slow
    def test_rubbish_is_no_picture_and_does_no_harm(self, mjpeg: MjpegCamera, impatient: None):
        mjpeg.broken = True
        with Camera("door", CameraOptions(mjpeg.url, open_s=2.0)) as camera:
            assert refused(camera, 0.3).endswith(
                "its pictures cannot be decoded: Invalid data found when processing input"
            )
            mjpeg.broken = False
            camera.latest(timeout_s=10)
            mjpeg.broken = True
            time.sleep(0.3)
            mjpeg.broken = False
            time.sleep(0.2)
            assert abs(number(camera.latest().image) - mjpeg.sent) <= 4

    def test_a_password_is_sent_and_never_told(
        self, mjpeg: MjpegCamera, impatient: None, caplog: pytest.LogCaptureFixture
    ):
        mjpeg.password = "user:p%40ss"
        url = mjpeg.url.replace("http://", "http://user:wr0ng@")
        with Camera("door", CameraOptions(url)) as camera:
            line = refused(camera)
        assert "127.0.0.1" in line
        for text in (line, caplog.text, str(camera.snapshot())):
            assert "wr0ng" not in text
            assert "user" not in text
        mjpeg.password = "user:secret"
        with Camera("door", CameraOptions(mjpeg.url.replace("http://", "http://user:secret@"))) as camera:
            camera.latest()

    def test_a_playlist_cannot_make_us_read_files(self, mjpeg: MjpegCamera, tmp_path: Path, impatient: None):
        secret = tmp_path / "secret.mp4"
        write_video(secret, "libx264")
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
        mjpeg.instead = playlist
        with Camera("door", CameraOptions(mjpeg.url)) as camera:
            assert "Invalid data found" in refused(camera)

    def test_pictures_too_large_are_not_decoded(self, impatient: None, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(media, "MAX_IMAGE_PIXELS", 100_000)
        server = MjpegCamera(lambda n: numbered(n, (800, 600)), rate=5)
        with Camera("door", CameraOptions(server.url)) as camera:
            assert "its pictures cannot be decoded" in refused(camera, 0.3)
        server.close()


class TestWhatIsGiven:
    def test_a_cap_on_pixels_and_a_turn(self):
        server = MjpegCamera(lambda n: numbered(n, (640, 320)))
        with Camera("door", CameraOptions(server.url, max_pixels=80_000, turn=90)) as camera:
            image = camera.latest().image
        server.close()
        assert image.size == (200, 400)
        assert image.mode == "RGB"

    def test_turned_clockwise(self, tmp_path: Path):
        picture = Image.new("RGB", (80, 40), "black")
        picture.paste("white", (0, 0, 40, 40))
        (tmp_path / "a.png").write_bytes(jpeg(picture))
        image = np.asarray(Camera("door", CameraOptions(str(tmp_path / "a.png"), turn=90)).latest().image)
        assert image.shape == (80, 40, 3)
        assert image[:30].mean() > 250
        assert image[50:].mean() < 5

    def test_brightness_is_the_mean_of_each_part(self, mjpeg: MjpegCamera):
        checks = np.zeros((180, 320, 3), np.uint8)
        checks[:, 160:] = 200
        checks[::2, :160] = 100
        mjpeg.picture = lambda _: Image.fromarray(checks)
        with Camera("door", CameraOptions(mjpeg.url)) as camera:
            luma = camera.latest().luma(16, 9)
        assert luma.shape == (9, 16)
        assert luma[:, :7].mean() == pytest.approx(50, abs=8)
        assert luma[:, 9:].mean() == pytest.approx(200, abs=8)


class TestStill:
    def test_a_file_that_is_renewed(self, tmp_path: Path):
        file = tmp_path / "door.jpg"
        file.write_bytes(jpeg(numbered(10)))
        os.utime(file, (time.time() - 60, time.time() - 60))
        camera = Camera("door", CameraOptions(str(file)))
        frame = camera.latest()
        assert time.monotonic() - frame.taken == pytest.approx(60, abs=1)
        file.write_bytes(jpeg(numbered(20)))
        assert number(camera.latest().image) == pytest.approx(20, abs=2)
        file.write_bytes(b"half")
        with pytest.raises(EdgeRuntimeError, match=r"camera door: .*door.jpg: the image is not a JPEG"):
            camera.latest()
        file.unlink()
        with pytest.raises(EdgeRuntimeError, match=r"door.jpg: No such file"):
            camera.latest()
        assert camera.status.state == "lost"

    def test_an_address_that_answers_with_a_picture(self, mjpeg: MjpegCamera):
        mjpeg.password = "me:secret"
        still = f"http://me:secret@127.0.0.1:{mjpeg.port}/still.jpg"
        camera = Camera("door", CameraOptions(still))
        assert number(camera.latest().image) == pytest.approx(0, abs=2)
        mjpeg.password = "me:other"
        with pytest.raises(EdgeRuntimeError, match=r"camera door: http://127.0.0.1:\d+/still.jpg: HTTP status 401"):
            camera.latest()
        mjpeg.close()
        with pytest.raises(EdgeRuntimeError, match="Connection refused"):
            camera.latest()


def write_video(file: Path, codec: str, **options: str) -> None:
    """1.2 s at 25 frames a second in which the colour tells the number of the frame; a keyframe each 0.4 s."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = 320, 180
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = 10
        for count in range(30):
            container.mux(stream.encode(av.VideoFrame.from_image(numbered(4 * count))))
        container.mux(stream.encode(None))


class TestFile:
    @pytest.mark.parametrize(
        ("codec", "suffix", "late"), [("libx264", "mp4", 5), pytest.param("mjpeg", "mkv", 2, marks=pytest.mark.slow)]
    )
    def test_it_plays_in_real_time_again_and_again(self, tmp_path: Path, codec: str, suffix: str, late: int):
        file = tmp_path / f"video.{suffix}"
        write_video(file, codec)
        with Camera("door", CameraOptions(str(file))) as camera:
            camera.latest()
            started = time.monotonic()
            for seconds in (0.3, 0.8, 1.5):
                time.sleep(started + seconds - time.monotonic())
                shown = number(camera.latest().image) / 4
                expected = 25 * seconds % 30
                assert expected - late - 3 <= shown <= expected + 4
            assert camera.snapshot()["losses"] == 0

    def test_none(self, tmp_path: Path, impatient: None):
        with Camera("door", CameraOptions(str(tmp_path / "none.mp4"))) as camera:
            assert "none.mp4: No such file" in refused(camera)


class TestRtsp:
    def test_frozen_killed_and_back(self, free_port: int, impatient: None):
        """One connection to the end, for a real server takes its time to begin."""
        server = RtspCamera(free_port)
        with Camera("door", CameraOptions(server.url, read_s=1.0)) as camera:
            frame = camera.latest(timeout_s=15)
            assert frame.image.size == (320, 240)
            assert time.monotonic() - frame.taken < 1.0
            os.kill(server.process.pid, signal.SIGSTOP)
            until(lambda: camera.status.state == "lost")
            server.close()
            server = RtspCamera(free_port)
            camera.latest(timeout_s=20)
            assert camera.snapshot()["losses"] >= 1
        server.close()


class TestGStreamer:
    def test_any_pipeline(self, impatient: None):
        needs("gst-launch-1.0")
        source = "gst:videotestsrc is-live=true pattern=smpte ! video/x-raw,width=640,height=480,framerate=30/1"
        with Camera("csi", CameraOptions(source, size=(320, 180))) as camera:
            first = camera.latest(timeout_s=15)
            assert first.image.size == (320, 180)
            bars = np.asarray(first.image)[40, 60:300:20]
            assert len(np.unique(bars // 64, axis=0)) >= 5, "colours, not noise"
            time.sleep(0.5)
            assert camera.latest().taken > first.taken

    @pytest.mark.slow
    def test_one_that_stops(self, impatient: None):
        needs("gst-launch-1.0")
        source = "gst:videotestsrc is-live=true num-buffers=20 ! video/x-raw,framerate=30/1"
        with Camera("csi", CameraOptions(source, size=(320, 180))) as camera:
            camera.latest(timeout_s=15)
            until(lambda: camera.status.state == "lost")
            until(lambda: camera.status.losses >= 2, 20)

    @pytest.mark.slow
    def test_one_that_hangs(self, impatient: None):
        needs("gst-launch-1.0")
        source = "gst:videotestsrc is-live=true ! video/x-raw,framerate=30/1"
        with Camera("csi", CameraOptions(source, size=(320, 180), read_s=1.0)) as camera:
            camera.latest(timeout_s=15)
            os.kill(camera._reader._child.process.pid, signal.SIGSTOP)
            until(lambda: camera.status.detail.endswith("silent for 1 s"))
            camera.latest(timeout_s=15)

    def test_one_that_cannot_be(self, impatient: None):
        needs("gst-launch-1.0")
        with Camera("csi", CameraOptions("csi:0")) as camera:
            assert "nvarguscamerasrc" in refused(camera)


def test_a_device_that_is_not_there(impatient: None):
    with Camera("usb", CameraOptions("/dev/video99")) as camera:
        assert refused(camera) == "camera usb: /dev/video99: No such file or directory"


def test_closing_is_quick_and_wakes_who_waits(mjpeg: MjpegCamera):
    camera = Camera("door", CameraOptions(mjpeg.url))
    camera.latest()
    begun = time.monotonic()
    camera.close()
    assert time.monotonic() - begun < 1.2
    with pytest.raises(EdgeRuntimeError):
        camera.latest(max_age_s=0.0)
    assert camera.status.state == "closed"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("rtsp://me:secret@10.0.0.7:554/a@b", "rtsp://10.0.0.7:554/a@b"),
        ("http://10.0.0.7/x", "http://10.0.0.7/x"),
        ("gst:rtspsrc location=rtsp://me:s%40t@h/x ! decodebin", "gst:rtspsrc location=rtsp://h/x ! decodebin"),
    ],
)
def test_who_and_how_are_not_told(source: str, expected: str):
    assert redacted(source) == expected
