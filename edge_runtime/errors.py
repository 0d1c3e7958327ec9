"""The one error a user meets: a single clear line and a code that MQTT and HTTP clients can act on."""

from __future__ import annotations

from typing import Literal

ErrorCode = Literal["bad_request", "too_large", "unsupported_media", "busy", "expired", "cancelled", "internal"]


class EdgeRuntimeError(Exception):
    """Something the caller can mend. `str(error)` is one line, written for the person who reads it.

    Attributes:
        code: The machine-readable kind, one of `ErrorCode`.
    """

    def __init__(self, message: str, code: ErrorCode = "bad_request") -> None:
        super().__init__(" ".join(message.split()))
        self.code: ErrorCode = code
