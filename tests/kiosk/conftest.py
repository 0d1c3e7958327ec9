"""A real Chromium in front of a real server, with a microphone that hears a file and a camera that sees one."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest
import soundfile
from PIL import Image

from edge_runtime.settings import HttpSettings, KioskSettings, LimitsSettings, Settings
from edge_runtime.settings_senses import SpeechSettings
from tests.daemon.conftest import FakeModel
from tests.daemon.http.conftest import Box

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterator

    from edge_runtime.engine.protocol import Piece

ASSETS = Path(__file__).parents[2] / "edge_runtime/demo_assets"
RATE = 48_000
WAIT_MS = 20_000
START_S = 120

PICTURES = Path(__file__).parents[2] / "docs/kiosk"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SIZES = {"portrait": (1080, 1920), "landscape": (1280, 800), "phone": (360, 640)}
# Controls that cannot be reached because they stand beyond the edge of the screen, or under 24 pixels (WCAG 2.5.8).
OUTSIDE = """() => [...document.querySelectorAll("button, input, select")].filter((control) => {
  const box = control.getBoundingClientRect();
  if (!control.checkVisibility({visibilityProperty: true}) || control.closest("#welcome")) return false;
  return box.left < 0 || box.top < 0 || box.right > innerWidth + 1 || box.bottom > innerHeight + 1 || box.height < 24;
}).map((control) => control.id || control.textContent)"""


class Storyteller(FakeModel):
    """Says what it is told to say, else what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.says: str | None = None

    def _chat(self, messages: Any, *, cancel: threading.Event, **options: Any) -> Generator[Piece, None, None]:
        if self.says is not None:
            messages = [*messages[:-1], {"role": "user", "content": [{"type": "text", "text": self.says}]}]
        yield from super()._chat(messages, cancel=cancel, **options)


class Daemon:
    """`edge-runtime serve` with the built-in model and without a broker."""

    def __init__(self, folder: Path, port: int, kiosk: str = "") -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._config = folder / "config.toml"
        self._config.write_text(
            f'[http]\nlisten = "127.0.0.1:{port}"\n[mqtt]\nport = 1\n[storage]\nstate_dir = "{folder}"\n'
            f'[speech]\nengine = "off"\n[kiosk]\n{kiosk}\n'
        )
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "edge_runtime", "serve", "--config", str(self._config)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError("the daemon does not get ready")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra test-browser")
    with api.sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def expect(playwright):
    from playwright.sync_api import expect

    expect.set_options(timeout=WAIT_MS)
    return expect


@pytest.fixture
def state(expect):
    """Waits until a page is in one of the states."""

    def wait(page, *names):
        expect(page.locator("html")).to_have_attribute("data-state", re.compile(f"^({'|'.join(names)})$"))

    return wait


@pytest.fixture(scope="session")
def launch(playwright) -> Iterator[Callable[..., Any]]:
    """Starts a browser whose microphone and camera are of Chromium's making, or files."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")
    browsers: dict[tuple[Path | None, Path | None, bool], Any] = {}

    def start(audio: Path | None, video: Path | None, *, allowed: bool) -> Any:
        arguments = ["--use-fake-device-for-media-stream", "--mute-audio", "--disable-gpu"]
        arguments += ["--autoplay-policy=no-user-gesture-required"]
        arguments += ["--use-fake-ui-for-media-stream"] if allowed else []  # says yes where a person is asked
        arguments += [f"--use-file-for-fake-audio-capture={audio}%noloop"] if audio else []
        arguments += [f"--use-file-for-fake-video-capture={video}"] if video else []
        if (audio, video, allowed) not in browsers:
            sandbox = os.geteuid() != 0  # Chromium has none for root
            started = playwright.chromium.launch(executable_path=program, args=arguments, chromium_sandbox=sandbox)
            browsers[audio, video, allowed] = started
        return browsers[audio, video, allowed]

    yield start
    for browser in browsers.values():
        browser.close()


@pytest.fixture
def chromium(launch) -> Iterator[Callable[..., Any]]:
    """Opens a page: `chromium(url, audio=file, video=file, size=(1280, 800))`."""
    contexts: list[Any] = []
    problems: list[str] = []

    def begin(
        url: str,
        *,
        audio: Path | None = None,
        video: Path | None = None,
        allowed: bool = True,
        size: tuple[int, int] = (1280, 800),
        **more: Any,
    ) -> Any:
        viewport = {"width": size[0], "height": size[1]}
        contexts.append(launch(audio, video, allowed=allowed).new_context(viewport=viewport, locale="en-GB", **more))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if "Content Security" in said.text else None)
        page.goto(url)
        return page

    yield begin
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def box() -> Iterator[Callable[..., Box]]:
    """Starts a server with a fake model; what is given are settings of [kiosk]."""
    boxes: list[Box] = []

    def begin(
        *,
        loaded: bool = True,
        http: dict[str, Any] | None = None,
        voice: bool = False,
        audio_s: float = 600,
        **kiosk: Any,
    ) -> Box:
        settings = Settings(
            limits=LimitsSettings(queue=8, per_client=4, audio_s=audio_s),
            http=replace(HttpSettings(listen="127.0.0.1:0"), **http or {}),
            speech=SpeechSettings(engine="auto" if voice else "off"),
            kiosk=replace(KioskSettings(), **kiosk),
        )
        made = Box(Storyteller(), settings)
        boxes.append(made)
        if loaded:
            made.load()
        return made

    yield begin
    for made in boxes:
        made.close()


@pytest.fixture(scope="session")
def daemon(tmp_path_factory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("daemon"), _port(), 'title = "City Zoo"')
    yield made
    made.kill()


@pytest.fixture
def own_daemon(tmp_path) -> Iterator[Daemon]:
    made = Daemon(tmp_path, _port())
    yield made
    made.kill()


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A spoken question as a microphone's file, and how long it is in seconds."""
    samples, rate = soundfile.read(ASSETS / "voice.wav")
    sound = np.interp(np.arange(0, len(samples) / rate, 1 / RATE), np.arange(len(samples)) / rate, samples)
    path = tmp_path_factory.mktemp("sound") / "voice.wav"
    soundfile.write(path, np.concatenate([np.zeros(RATE // 2), sound, np.zeros(2 * RATE)]), RATE, subtype="PCM_16")
    return path, 0.5 + len(samples) / rate


@pytest.fixture(scope="session")
def sign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sign as a camera's file (YUV4MPEG2, BT.601, 4:2:0)."""
    picture = Image.open(ASSETS / "sign.png").convert("RGB")
    width, height = (side // 2 * 2 for side in picture.size)
    y, u, v = (np.asarray(part, np.float32) for part in picture.crop((0, 0, width, height)).convert("YCbCr").split())
    small = [128 + (part[::2, ::2] - 128) * 224 / 255 for part in (u, v)]
    planes = [16 + y * 219 / 255, *small]
    frame = b"FRAME\n" + b"".join(part.round().astype(np.uint8).tobytes() for part in planes)
    path = tmp_path_factory.mktemp("picture") / "sign.y4m"
    path.write_bytes(f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420\n".encode() + 10 * frame)
    return path


@pytest.fixture(scope="session")
def axe():
    from axe_playwright_python.sync_playwright import Axe

    return Axe()


@pytest.fixture(scope="session")
def sizes():
    return SIZES


@pytest.fixture(params=SIZES)
def size(request):
    return request.param


@pytest.fixture
def look(axe, size):
    """Judges what a page shows, and keeps its picture if that is wanted."""

    def judge(page, name, *, keep=True, whole=False):
        page.wait_for_timeout(400)  # for what moves to come to rest
        found = axe.run(page, options={"runOnly": {"type": "tag", "values": RULES}})
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name}: wider than the screen"
        cut = [] if whole else page.evaluate(OUTSIDE)
        assert cut == [], f"{name}: {cut}"
        if keep and os.environ.get("KEEP_PICTURES"):
            shown = Image.open(io.BytesIO(page.screenshot(full_page=whole)))
            shown.thumbnail((640, 640))
            PICTURES.mkdir(exist_ok=True)
            shown.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
                PICTURES / f"{name}-{size}.png", optimize=True
            )

    return judge


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
