"""Cameras that give one picture when asked: a file that another program renews, or an address that answers with one."""

from __future__ import annotations

import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

from edge_runtime import media
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.perception.frame import PilPicture
from edge_runtime.perception.source import SourceLost

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_BYTES = 32 * 2**20
CHUNK = 2**16


def is_still(source: str) -> bool:
    """Whether `source` is a picture rather than a stream of them: its name ends like one."""
    if source.startswith(("gst:", "csi:", "rtsp")):
        return False
    return Path(urllib.parse.urlsplit(source).path).suffix.casefold() in SUFFIXES


class Still:
    """A picture that is read anew each time."""

    def __init__(self, source: str, timeout_s: float) -> None:
        """Reads nothing yet.

        Args:
            source: A path, or `http://` with a user's name and password where they are needed.
            timeout_s: The answer must be complete within so many seconds.
        """
        self._timeout_s = timeout_s
        self._path = None if "://" in source else Path(source)
        if self._path is None:
            parts = urllib.parse.urlsplit(source)
            self._url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
            users = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            if parts.username is not None:
                name, password = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
                users.add_password(None, self._url, name, password)
            self._opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}),  # cameras are on this network
                urllib.request.HTTPBasicAuthHandler(users),
                urllib.request.HTTPDigestAuthHandler(users),
            )

    def newest(self) -> tuple[PilPicture, float]:
        """The picture and the `time.monotonic()` at which it was taken.

        Raises:
            SourceLost: There is none; without the source's name.
        """
        try:
            if self._path is not None:
                taken = time.monotonic() - max(0.0, time.time() - self._path.stat().st_mtime)
                data = self._path.read_bytes()
            else:
                data, taken = self._fetch(), time.monotonic()
            return PilPicture(media.load_image(data)), taken
        except urllib.error.HTTPError as error:
            raise SourceLost(f"HTTP status {error.code}") from None
        except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise SourceLost(getattr(reason, "strerror", None) or str(reason)) from None
        except EdgeRuntimeError as error:
            raise SourceLost(str(error)) from None

    def _fetch(self) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        data = b""
        answer: IO[bytes]
        with self._opener.open(self._url, timeout=self._timeout_s) as answer:
            while more := answer.read(CHUNK):
                data += more
                if time.monotonic() > deadline:
                    raise SourceLost(f"not complete after {self._timeout_s:g} s")
                if len(data) > MAX_BYTES:
                    raise SourceLost(f"its picture has more than {MAX_BYTES} bytes")
        return data
