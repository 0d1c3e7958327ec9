"""Cameras for tests: an MJPEG server of our own, and Debian's RTSP server."""

from __future__ import annotations

import base64
import io
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable


def numbered(number: int, size: tuple[int, int] = (320, 180)) -> Image.Image:
    """A picture that tells its number by its colour."""
    return Image.new("RGB", size, (number % 256, 60, 200))


def number(image: Image.Image) -> int:
    """The number of a picture, give or take what JPEG and video do to it."""
    return int(np.asarray(image)[:, :, 0].mean().round())


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


class MjpegCamera:
    """`/stream` sends parts for ever, `/still.jpg` one picture; what they show is `picture(n)`.

    Attributes:
        sent: Parts sent.
        stalled: Set it, and nothing more is sent on connections that stay open.
        broken: Set it, and parts are not JPEGs any more.
        password: `name:password` that is asked for.
        instead: A playlist that is sent instead of pictures.
        lengths: Whether parts say how long they are; some cameras don't.
    """

    def __init__(self, picture: Callable[[int], Image.Image] = numbered, rate: float = 25.0, port: int = 0) -> None:
        self.picture, self.rate = picture, rate
        self.sent = self.requests = 0
        self.stalled = self.broken = False
        self.password: str | None = None
        self.lengths = True
        self.instead: bytes | None = None
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._open = True
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/stream"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests += 1
        wanted = self.password and "Basic " + base64.b64encode(self.password.encode()).decode()
        if wanted and handler.headers.get("Authorization") != wanted:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="camera"')
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(200)
        if self.instead is not None:
            handler.send_header("Content-Type", "application/vnd.apple.mpegurl")
            handler.end_headers()
            handler.wfile.write(self.instead)
            return
        if handler.path.endswith(".jpg"):
            data = b"no picture" if self.broken else jpeg(self.picture(self.sent))
            handler.send_header("Content-Type", "image/jpeg")
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
            return
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        self._connections.append(handler.connection)
        try:
            while self._open:
                if not self.stalled:
                    self._part(handler)
                time.sleep(1 / self.rate)
        except OSError:
            return

    def _part(self, handler: BaseHTTPRequestHandler) -> None:
        data = bytes(1000) if self.broken else jpeg(self.picture(self.sent))
        length = f"Content-Length: {len(data)}\r\n" if self.lengths else ""
        handler.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n" + length.encode() + b"\r\n" + data + b"\r\n")
        self.sent += 1

    def close(self) -> None:
        self._open = False
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


RTSP = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer(address="127.0.0.1", service=sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch("( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=15/1 ! "
    "x264enc tune=zerolatency key-int-max=15 ! rtph264pay name=pay0 pt=96 )")
factory.set_shared(True)
server.get_mount_points().add_factory("/door", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


class RtspCamera:
    """H.264 over RTSP at 15 frames a second, a keyframe each second."""

    def __init__(self, port: int) -> None:
        self.url = f"rtsp://127.0.0.1:{port}/door"
        python = shutil.which("python3", path="/usr/bin")  # gi comes with Debian's
        if python is None:
            pytest.skip("Debian's python3 is not installed")
        self.process = subprocess.Popen(
            [python, "-c", RTSP, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if not self.process.stdout.readline():
            self.close()
            pytest.skip("python3-gi, gir1.2-gst-rtsp-server-1.0 or gstreamer1.0-plugins-ugly is not installed")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
