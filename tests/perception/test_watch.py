"""What is worth a question: scenes drawn from a seed, with the noise and the light that cameras have."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from edge_runtime.perception.camera import Camera, CameraOptions
from edge_runtime.perception.watch import HEIGHT, WIDTH, ChangeDetector, ChangeOptions, Watch
from tests.perception.servers import MjpegCamera
from tests.perception.test_microphone import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SIZE = (320, 180)
SCENES: dict[int, NDArray[np.float32]] = {}


def scene(seed: int = 0) -> NDArray[np.float32]:
    """A yard: patches of brightness, float32 `[180, 320]`."""
    if seed not in SCENES:
        SCENES[seed] = drawn(seed)
    return SCENES[seed].copy()


def drawn(seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    coarse = random.uniform(40, 200, (9, 16))
    return np.kron(coarse, np.ones((20, 20))).astype(np.float32)


def with_person(picture: NDArray[np.float32], x: int, y: int = 90, width: int = 12, height: int = 30) -> Any:
    picture = picture.copy()
    patch = picture[y : y + height, x : x + width]
    patch[:] = np.where(patch > 110, patch - 80, patch + 80)
    return picture


class Seen:
    """A detector at one picture a second, with the noise that a cheap camera leaves in means of 25 pixels."""

    def __init__(self, options: ChangeOptions | None = None, noise: float = 2.0) -> None:
        self.detector, self.noise = ChangeDetector(options), noise
        self.random = np.random.default_rng(1)

    def __call__(self, picture: NDArray[Any]) -> bool:
        small = picture.reshape(HEIGHT, 5, WIDTH, 5).mean(axis=(1, 3))
        noisy = np.clip(small + self.random.normal(0, self.noise, small.shape), 0, 255)
        return self.detector.changed(noisy.astype(np.float32), 1.0)


@pytest.fixture
def seen() -> Seen:
    """One that knows the empty scene."""
    found = Seen()
    assert found(scene()), "the first picture is always worth a question"
    assert not any(found(scene()) for _ in range(5))
    return found


def test_nothing_happens_for_a_quarter_of_an_hour(seen: Seen):
    assert not any(seen(scene()) for _ in range(900))


def test_somebody_comes_stays_and_goes(seen: Seen):
    assert seen(with_person(scene(), 150))
    assert not any(seen(with_person(scene(), 150)) for _ in range(120)), "asked once"
    assert seen(scene()), "and when they are gone"


def test_somebody_who_walks_is_asked_about_again(seen: Seen):
    assert sum(seen(with_person(scene(), x)) for x in range(20, 300, 14)) >= 15


def test_the_sun_rises_and_clouds_pass(seen: Seen):
    for second in range(900):
        light = 1 - 0.4 * second / 900 + 0.15 * np.sin(second / 20)
        assert not seen(scene() * light - 10 * np.cos(second / 300))


def test_exposure_that_jumps_is_no_change(seen: Seen):
    assert not seen(np.clip(scene() * 1.2 + 8, 0, 255))
    assert not seen(scene() * 0.6 + 10)


def test_a_shadow_that_creeps_is_no_change(seen: Seen):
    for second in range(900):
        edge = second / 900 * 800 - 240
        shadow = 1 - 0.3 / (1 + np.exp((np.arange(320) - edge) / 40))
        assert not seen(scene() * shadow)


def test_a_clock_in_the_corner_and_leaves_in_the_wind_are_learned():
    seen = Seen()
    random = np.random.default_rng(2)

    def restless() -> Any:
        picture = scene()
        picture[5:15, 5:85] = np.kron(random.choice([0, 255], (1, 8)), np.ones((10, 10)))
        picture[100:160, 220:300] += np.kron(random.normal(0, 25, (6, 8)), np.ones((10, 10)))
        return np.clip(picture, 0, 255)

    early = sum(seen(restless()) for _ in range(60))
    late = sum(seen(restless()) for _ in range(300))
    assert early > 1
    assert late <= 3
    assert seen(with_person(restless(), 150)), "elsewhere it is as watchful as ever"


def test_a_light_that_is_switched_on_in_one_room_is_a_change(seen: Seen):
    lit = scene()
    lit[:, :80] = np.clip(lit[:, :80] + 60, 0, 255)
    assert seen(lit)


def test_a_covered_lens_is_a_change_and_the_dark_is_quiet(seen: Seen):
    dark = np.full((180, 320), 6.0, np.float32)
    assert seen(dark)
    assert not any(seen(dark) for _ in range(60))
    assert seen(scene())


@pytest.mark.parametrize(("area", "worth"), [(0.002, True), (0.006, True), (0.05, False)])
def test_how_much_must_change_is_tunable(area: float, worth: bool):
    seen = Seen(ChangeOptions(area=area))
    seen(scene())
    assert seen(with_person(scene(), 150)) is worth


def test_something_slow_is_noticed_in_the_end(seen: Seen):
    """A gate that takes a minute to open."""
    assert any(seen(with_person(scene(), 150, width=1 + second)) for second in range(60))


class Yard:
    """What the camera sees, as a picture."""

    def __init__(self) -> None:
        self.person: int | None = None
        self.random = np.random.default_rng(3)

    def __call__(self, _: int) -> Image.Image:
        picture = scene() if self.person is None else with_person(scene(), self.person)
        noisy = np.clip(picture + self.random.normal(0, 5, picture.shape), 0, 255)
        return Image.fromarray(noisy.astype(np.uint8)).convert("RGB")


class Watching:
    """A watch on a real camera, in a thread of its own."""

    def __init__(self, url: str, **options: Any) -> None:
        self.camera = Camera("yard", CameraOptions(url))
        self.watch = Watch(self.camera, **options)
        self.stop = threading.Event()
        self.times: list[float] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        for frame in self.watch.frames(self.stop):
            assert frame.image.size == SIZE
            self.times.append(time.monotonic())

    def close(self) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.camera.close()


@pytest.fixture
def watching() -> Iterator[tuple[Yard, Callable[..., Watching]]]:
    pytest.importorskip("av", reason="the extra camera is not installed")
    yard = Yard()
    server = MjpegCamera(yard, rate=20)
    opened: list[Watching] = []

    def watch(**options: Any) -> Watching:
        opened.append(Watching(server.url, **options))
        return opened[-1]

    yield yard, watch
    for each in opened:
        each.close()
    server.close()


def test_only_changed_pictures_are_worth_a_question(watching: tuple[Yard, Callable[..., Watching]]):
    yard, watch = watching
    watched = watch(interval_s=0.05, changes=ChangeOptions())
    until(lambda: watched.watch.looked >= 15)
    assert len(watched.times) == 1, "the first one"
    yard.person = 150
    until(lambda: len(watched.times) == 2, 2)
    looked = watched.watch.looked
    until(lambda: watched.watch.looked >= looked + 15)
    assert len(watched.times) == watched.watch.asked == 2


def test_at_an_interval_that_can_be_stretched(watching: tuple[Yard, Callable[..., Watching]]):
    _, watch = watching
    watched = watch(interval_s=0.1)
    until(lambda: len(watched.times) >= 5)
    assert np.diff(watched.times).mean() > 0.05  # 0.1 on an idle machine
    watched.watch.pace = 3.0
    time.sleep(0.4)
    watched.times.clear()
    until(lambda: len(watched.times) >= 3)
    assert np.diff(watched.times).mean() > 0.15  # 0.3


def test_it_rests_after_a_question_and_misses_nothing(watching: tuple[Yard, Callable[..., Watching]]):
    yard, watch = watching
    watched = watch(interval_s=0.05, changes=ChangeOptions(), rest_s=1.0)
    until(lambda: len(watched.times) == 1)
    yard.person = 150
    until(lambda: len(watched.times) == 2, 4)
    assert watched.times[1] - watched.times[0] >= 1.0
