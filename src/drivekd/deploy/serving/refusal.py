"""Why a request was not answered, in the words and the form that OpenAI's clients expect."""

from __future__ import annotations

from typing import Any

_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refused(Exception):  # noqa: N818 - it is told to a client, not to the user of this process
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: what was expected, what came and the way out.
        param: the part of the request that it is about, as in `messages[0].content[1]`.
        code: for programs.
        retry_after: when to try again [s].
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What belongs into the head of the response."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.status in (408, 413):  # whatever still comes is not read
            return {"Connection": "close"}
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    @property
    def content(self) -> dict[str, Any]:
        """The error object."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": told}
