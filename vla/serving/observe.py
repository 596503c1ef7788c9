"""Names, counts and logs every request, and takes in what a refused one still sends."""

import asyncio
import contextlib
import logging
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vla.serving.limits import Limits
from vla.serving.metrics import Metrics

logger = logging.getLogger("vla.serving")

DRAIN_SECONDS = 2.0
GONE = 499  # the client left; nginx's number


def request_id(scope: Scope) -> str:
    """The name under which the log has this request; the client gets it as X-Request-ID."""
    return scope["state"]["request_id"]


class Observe:
    """Goes around the whole application.

    An answer that comes before the body was read (a wrong key, too long a body) would be lost if
    the connection were closed on a client that still sends: a bounded rest is read first.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, limits: Limits):
        self._app, self._metrics, self._limits = app, metrics, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = f"req-{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = id
        start = time.perf_counter()
        status, unread = 500, True

        async def watched_receive() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode())]
                if unread and status >= 400 and not _waits(scope):
                    await self._drain(watched_receive)
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        finally:
            seconds = time.perf_counter() - start
            self._metrics.requests.add(label=str(status))
            self._metrics.seconds.add(seconds)
            if status == GONE or scope["state"].get("gone"):
                self._metrics.cancelled.add()
            logger.info(
                'id=%s method=%s path="%s" status=%d ms=%.1f',
                id,
                scope["method"],
                ascii(scope["path"])[1:-1].replace('"', "'")[:200],
                status,
                1e3 * seconds,
            )

    async def _drain(self, receive: Receive) -> None:
        left = 4 * self._limits.body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return


def _waits(scope: Scope) -> bool:
    """Whether the client sends its body only when it is told to go on."""
    return any(name == b"expect" for name, _ in scope["headers"])
