"""What can go wrong in a worker, and how it is said.

`ApiError` answers one request; `LoadError` ends the process with one line. Both carry the sentence the user reads:
the value, the limit and the next step.
"""

from __future__ import annotations

from collections.abc import Mapping


class ApiError(Exception):
    """A refusal or failure of one request, in the shape OpenAI's clients read."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class LoadError(Exception):
    """The checkpoint cannot be served; the message is the one line that the process leaves behind."""


class EngineBroken(Exception):
    """The device failed in a way that only a new process gets over; the message is the line it leaves behind."""


class Cancelled(Exception):
    """Nobody waits for this job any more. Raised inside the engine thread only."""


def internal_error(message: str) -> ApiError:
    return ApiError(message, status=500, type="server_error", code="internal_error")
