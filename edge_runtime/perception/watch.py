"""Which pictures of a camera are worth a question: one in so many seconds, or those in which something has changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edge_runtime.perception.camera import Camera
    from edge_runtime.perception.frame import Frame

WIDTH, HEIGHT = 64, 36


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """What counts as a change."""

    area: float = 0.006
    """Part of the picture that has changed: 0.006 is a person across a yard, 14 of 2304 cells."""
    levels: float = 10.0
    """Difference in brightness, of 255, that counts, where the picture is otherwise still."""
    sigmas: float = 5.0
    """How far a difference must stand out from what the same spot does all the time: leaves, water, a clock."""
    adapt_s: float = 30.0
    """Light that changes over this long is no change."""


class ChangeDetector:
    """Compares each picture with the last one that was worth a question.

    On a grid of 64 x 36 means of brightness: a straight line fitted between old and new takes out what light and
    exposure do to the whole picture. What remains is compared, spot by spot, with how restless that spot is from one
    picture to the next; a running mean follows slow light, as in adaptive background subtraction.
    """

    def __init__(self, options: ChangeOptions | None = None) -> None:
        """Has seen nothing."""
        self._options = options or ChangeOptions()
        self._reference: NDArray[np.float32] | None = None
        self._before = np.zeros((HEIGHT, WIDTH), np.float32)
        self._restless = np.zeros((HEIGHT, WIDTH), np.float32)

    def changed(self, luma: NDArray[np.float32], seconds: float) -> bool:
        """Whether something has changed since the last time that it said so; the first picture always has.

        Args:
            luma: float32 `[36, 64]` in 0..255.
            seconds: Since the picture before.
        """
        if self._reference is None:
            self._reference = luma
            return True
        expected = _relit(self._reference, luma)
        difference = luma - expected
        different = np.abs(difference) > np.maximum(self._options.levels, self._options.sigmas * self._restless)
        pace = np.float32(1 - np.exp(-seconds / self._options.adapt_s))
        self._restless += pace * (np.abs(difference - self._before) - self._restless)
        if different.mean() >= self._options.area:
            self._reference, self._before = luma, np.zeros_like(luma)
            return True
        # Slow light is followed; what is different already may be the beginning of a change that is still too small.
        follow = np.where(different, np.float32(0), pace * difference)
        self._reference, self._before = expected + follow, difference - follow
        return False


def _relit(old: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float32]:
    """`old` in the light of `new`: gain and offset by least squares, then again without the worst quarter of spots."""
    x, y = old.ravel(), new.ravel()
    keep = np.ones(len(x), bool)
    gain, offset = 1.0, 0.0
    for _ in range(2):
        kept_x, kept_y = x[keep], y[keep]
        spread = float(kept_x.var())
        # A picture without contrast, such as a covered lens, says nothing about the gain.
        gain = float(np.mean((kept_x - kept_x.mean()) * (kept_y - kept_y.mean())) / spread) if spread > 1.0 else 1.0
        gain = min(4.0, max(0.25, gain))
        offset = float(kept_y.mean() - gain * kept_x.mean())
        rest = np.abs(y - gain * x - offset)
        keep = rest <= np.quantile(rest, 0.75)
    relit: NDArray[np.float32] = np.clip(gain * old + offset, 0.0, 255.0).astype(np.float32)
    return relit


class Watch:
    """Looks at a camera from time to time.

    Attributes:
        pace: Times `interval_s`: more than 1 while the box is hot or busy.
        looked: Pictures looked at.
        asked: Pictures that were yielded.
    """

    def __init__(
        self, camera: Camera, interval_s: float, changes: ChangeOptions | None = None, rest_s: float = 0.0
    ) -> None:
        """Looks at nothing yet.

        Args:
            camera: At what.
            interval_s: Seconds from one look to the next.
            changes: Only pictures in which something has changed are yielded; None: all are.
            rest_s: After one was yielded, none is for so long; a change meanwhile counts afterwards.
        """
        self.pace = 1.0
        self.looked = self.asked = 0
        self._camera, self._interval_s, self._rest_s = camera, interval_s, rest_s
        self._detector = ChangeDetector(changes) if changes is not None else None
        self._looked_at = -1e9
        self._again = False

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Pictures worth a question until `stop` is set; none while the camera is away."""
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            due = time.monotonic() + self.pace * self._interval_s
            try:
                frame = self._camera.latest()
            except EdgeRuntimeError:
                continue  # the camera's status says it
            if self._worth_it(frame):
                self.asked += 1
                yield frame
                due = max(due, time.monotonic() + self._rest_s)

    def again(self) -> None:
        """The picture that was yielded last came to nothing: the next one counts as changed."""
        self._again = True

    def _worth_it(self, frame: Frame) -> bool:
        self.looked += 1
        seconds, self._looked_at = frame.taken - self._looked_at, frame.taken
        again, self._again = self._again, False
        changed = self._detector is None or self._detector.changed(frame.luma(WIDTH, HEIGHT), seconds)
        return changed or again
