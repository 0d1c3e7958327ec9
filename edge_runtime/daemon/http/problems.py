"""What went wrong, in the form in which OpenAI says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.errors import ErrorCode

BAD = "invalid_request_error"
SERVER = "server_error"
LOADING_RETRY_S = 5


class _Form(NamedTuple):
    status: int
    kind: str


# 499 is nginx's number for a client that went away; there is none in the standard.
_FORMS: dict[ErrorCode, _Form] = {
    "bad_request": _Form(400, BAD),
    "too_large": _Form(413, BAD),
    "unsupported_media": _Form(415, BAD),
    "busy": _Form(429, "rate_limit_error"),
    "expired": _Form(504, "timeout_error"),
    "cancelled": _Form(499, BAD),
    "internal": _Form(500, SERVER),
}


class Problem(Exception):  # noqa: N818 - it is an answer, too
    """Ends a request with an error.

    Attributes:
        status: HTTP status.
        body: `{"error": {"message", "type", "param", "code"}}`.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = BAD,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def bad(param: str, message: str) -> Problem:
    """A parameter that cannot be taken."""
    return Problem(400, f"{param}: {message}", code="bad_request", param=param)


def of_code(code: ErrorCode, message: str, retry_after_s: float | None = None) -> Problem:
    """One of the daemon's own errors.

    A prompt that does not fit the context is told as OpenAI tells it, since clients shorten their history by that.
    """
    form = _FORMS[code]
    if code == "too_large" and "the context is" in message:
        return Problem(400, message, code="context_length_exceeded", param="messages")
    headers = {"Retry-After": str(int(retry_after_s))} if retry_after_s is not None else {}
    status = 503 if code == "busy" and "stopping" in message else form.status
    return Problem(status, message, kind=form.kind, code=code, headers=headers)


def of_answer(error: Mapping[str, Any]) -> Problem:
    """The `error` of a final answer: `{"code", "message", "retry_after_s"?}`."""
    return of_code(error["code"], error["message"], error.get("retry_after_s"))


def loading() -> Problem:
    """The model is not there yet."""
    return Problem(
        503,
        "the model is still being loaded",
        kind=SERVER,
        code="loading",
        headers={"Retry-After": str(LOADING_RETRY_S)},
    )
