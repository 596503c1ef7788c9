"""Responses: JSON, refusals, and streams of events that end when the client leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vla.serving.refusal import Refused

PLAIN_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})
) -> Response:
    """`value` as JSON in ASCII, which can carry any text."""
    return Response(
        json.dumps(value, allow_nan=False),
        status,
        PLAIN_HEADERS | dict(headers),
        "application/json",
    )


def refusal_response(refused: Refused) -> Response:
    return json_response(refused.as_json(), refused.status, refused.headers)


async def unless_gone[T](receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives. If the client leaves first, `work` is cancelled.

    receive: of a request whose body has been read. Raises ClientDisconnect, or what `work` raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events with JSON in them, then `[DONE]`; ends when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[Any], close: Callable[[], None]):
        """close: called once, at the end, whatever the end is."""
        super().__init__(headers=PLAIN_HEADERS | {"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            await unless_gone(receive, self._send(send))
        except ClientDisconnect:
            scope["state"]["gone"] = True
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        async for event in self._events:
            await _send_event(send, json.dumps(event, allow_nan=False))
        await _send_event(send, "[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, data: str) -> None:
    body = f"data: {data}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})
