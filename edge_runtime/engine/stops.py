"""Stop strings in a stream: nothing that may be the beginning of one is given out before it is sure not to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopStrings:
    """Looks for stop strings in text that comes in pieces.

    Attributes:
        stopped: Whether one was found; what follows it is not given out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Takes the strings.

        Raises:
            EdgeRuntimeError: One is empty or no string.
        """
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise EdgeRuntimeError("stop must be a list of strings that are not empty")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Takes a piece; returns the text that may be shown, without the stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text still held back when the answer ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
