"""A request that is answered with an error of OpenAI's shape."""

from collections.abc import Mapping
from types import MappingProxyType

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(Exception):
    """Says what was expected, what came and what to do, to whoever sent the request.

    status: of HTTP, 400 to 599. param: the request's field, None for all of it. code: a word for
    programs. headers: further headers of the answer.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] = MappingProxyType({}),
    ):
        super().__init__(message)
        self.message, self.param, self.code = message, param, code
        self.status, self.headers = status, dict(headers)

    def as_json(self) -> dict[str, dict[str, str | None]]:
        """The body of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, kind)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def busy(waiting: int) -> Refused:
    """429: `waiting` answers are in the queue already."""
    return Refused(
        f"{waiting} answers are waiting already; try again after the time in Retry-After",
        code="queue_full",
        status=429,
        headers={"Retry-After": "1"},
    )
