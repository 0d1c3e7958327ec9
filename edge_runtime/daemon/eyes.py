"""The box's cameras: pictures for who asks, and watching, which asks by itself and tells what has changed."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from edge_runtime.daemon.admission import WATCHING
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.camera import Camera, CameraOptions
from edge_runtime.perception.source import close_all
from edge_runtime.perception.watch import ChangeOptions, Watch

if TYPE_CHECKING:
    from PIL.Image import Image

    from edge_runtime.daemon.local import LocalHandle, LocalRequests
    from edge_runtime.daemon.requests import Parser, Request
    from edge_runtime.daemon.talk import News
    from edge_runtime.perception.frame import Frame
    from edge_runtime.perception.source import Status
    from edge_runtime.settings_senses import CameraSettings

log = logging.getLogger(__name__)

# After a question that was not answered, the next one waits at least so long.
AGAIN_S = 2.0
# Closing takes no longer: the daemon has five seconds for its end.
CLOSE_S = 0.7


class Eyes:
    """All cameras."""

    def __init__(self, parser: Parser, local: LocalRequests, news: News) -> None:
        """Opens nothing yet."""
        self._parser, self._local, self._news = parser, local, news
        self._cameras: dict[str, Camera] = {}
        self._watchers: list[Watcher] = []

    def open(self) -> None:
        """Looks from now on.

        Raises:
            EdgeRuntimeError: The extra `camera` is needed and isn't there.
        """
        for settings in self._parser.settings.cameras:
            topic = f"camera/{settings.name}/status"

            def changed(status: Status, topic: str = topic) -> None:
                self._news.retain(topic, "online" if status.state == "open" else "offline")

            camera = self._cameras[settings.name] = Camera(settings.name, _options(settings), on_change=changed)
            if settings.interval_s is not None:
                watcher = Watcher(settings, camera, self._parser, self._local, self._news)
                self._watchers.append(watcher)
                watcher.start()

    def close(self) -> None:
        """Looks no more."""
        parts: list[Watcher | Camera] = [*self._watchers, *self._cameras.values()]
        close_all([part.close for part in parts], CLOSE_S)

    def picture(self, name: str) -> Image:
        """What a camera sees now.

        Raises:
            EdgeRuntimeError: It is away.
        """
        return self._cameras[name].latest().image

    def pace(self, factor: float) -> None:
        """Stretches all intervals: the box is hot or busy."""
        for watcher in self._watchers:
            watcher.watch.pace = factor

    def make_room(self) -> None:
        """Somebody waits: a question about a camera that is being answered is put off."""
        for watcher in self._watchers:
            watcher.put_off()

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """How each camera is, for status pages and metrics."""
        found = {name: camera.snapshot() for name, camera in self._cameras.items()}
        for watcher in self._watchers:
            found[watcher.name] |= {"looked": watcher.watch.looked, "asked": watcher.watch.asked}
        return found


class Watcher:
    """Watches one camera, in a thread of its own.

    Attributes:
        name: The camera's.
        watch: When it looks.
    """

    def __init__(
        self, settings: CameraSettings, camera: Camera, parser: Parser, local: LocalRequests, news: News
    ) -> None:
        """Does nothing yet."""
        changes = ChangeOptions(area=settings.change_area, levels=settings.change_levels)
        self.name = settings.name
        self.watch = Watch(
            camera, settings.interval_s or 0.0, changes if settings.on_change else None, rest_s=settings.rest_s
        )
        self._settings, self._parser, self._local, self._news = settings, parser, local, news
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._handle: LocalHandle | None = None
        self._last: Any = None
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name=f"watch {settings.name}", daemon=True)

    def start(self) -> None:
        """Watches from now on."""
        self._thread.start()

    def put_off(self) -> None:
        """Takes back the question that waits or is being answered; it is asked again later."""
        with self._lock:
            handle = self._handle
        if handle is not None:
            handle.cancel()

    def close(self) -> None:
        """Watches no more."""
        self._stop.set()
        self.put_off()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        try:
            for frame in self.watch.frames(self._stop):
                body = self._ask(frame)
                if "error" in body:
                    self._failed(body["error"])
                else:
                    self._problem = ""
                    self._answered(body, frame)
        except Exception:
            log.exception("camera %s is not watched any more", self.name)

    def _ask(self, frame: Frame) -> dict[str, Any]:
        """The answer about a picture, whatever it is."""
        finals: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        try:
            handle = self._local.submit(
                self._question(frame), client=f"camera {self.name}", rank=WATCHING, on_delta=None, on_final=finals.put
            )
        except EdgeRuntimeError as error:
            return {"error": {"code": error.code, "message": str(error)}}
        with self._lock:
            self._handle = handle
        if self._stop.is_set():
            handle.cancel()
        body = finals.get()
        with self._lock:
            self._handle = None
        return body

    def _question(self, frame: Frame) -> Request:
        request = self._parser.about_picture(frame.image, self._settings.prompt)
        given = {"schema": self._settings.schema, "max_tokens": self._settings.max_tokens}
        request.options.update({key: value for key, value in given.items() if value is not None})
        return request

    def _failed(self, error: dict[str, Any]) -> None:
        """What has changed has not been told: it counts as changed still."""
        self.watch.again()
        if error["code"] not in {"busy", "cancelled"} and error["message"] != self._problem:
            self._problem = error["message"]
            log.warning("camera %s: watching gets no answer: %s", self.name, self._problem)
        self._stop.wait(max(AGAIN_S, float(error.get("retry_after_s", 0))))

    def _answered(self, body: dict[str, Any], frame: Frame) -> None:
        answer: Any = body["text"].strip()
        if self._settings.schema is not None:
            try:
                answer = json.loads(answer)
            except ValueError:  # cut off by max_tokens: no answer of that form
                log.debug("camera %s: the answer is no JSON", self.name)
        if answer == self._last:
            return
        self._last = answer
        taken = round(time.time() - (time.monotonic() - frame.taken), 2)
        told = {"id": body["id"], "camera": self.name, "answer": answer, "text": body["text"], "taken": taken}
        self._news.tell("event/frame", told | {"timing": body.get("timing")})
        self._news.retain(f"camera/{self.name}/answer", json.dumps(told, ensure_ascii=False))


def _options(settings: CameraSettings) -> CameraOptions:
    wanted = (settings.width, settings.height)
    return CameraOptions(
        source=settings.source,
        size=(wanted[0], wanted[1]) if wanted[0] and wanted[1] else None,
        max_pixels=settings.max_pixels,
        turn=settings.turn,
        open_s=settings.open_s,
        read_s=settings.read_s,
    )
