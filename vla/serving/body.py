"""Reads a request's body with an end to its size and its time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from vla.serving.limits import MIB, Limits
from vla.serving.refusal import Refused


class Budget:
    """Bytes that all requests together may hold."""

    def __init__(self, total: int):
        self._total, self.held = total, 0

    @contextmanager
    def hold(self) -> Iterator["Hold"]:
        """A share that grows as bytes come, and is given back at the end."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self.held -= hold.bytes

    def take(self, count: int) -> None:
        if self.held + count > self._total:
            raise Refused(
                "the server reads too many requests at once; try again later",
                code="too_many_bytes",
                status=429,
                headers={"Retry-After": "2"},
            )
        self.held += count


class Hold:
    """One request's share of a budget."""

    def __init__(self, budget: Budget):
        self._budget, self.bytes = budget, 0

    def add(self, count: int) -> None:
        """Raises `Refused` (429) where the budget is spent."""
        self._budget.take(count)
        self.bytes += count


async def read_body(request: Request, limits: Limits, hold: Hold) -> bytes:
    """All of the body. Raises `Refused`: 413 where it is too long, as soon as that is known, 408
    where it comes too slowly, 415 where it says that it is not JSON; ClientDisconnect.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind.lower() != "application/json":
        raise Refused(
            "expected Content-Type: application/json", code="unsupported_media_type", status=415
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(
            "send the body without compression", code="unsupported_media_type", status=415
        )
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:20]) > limits.body:
        raise _too_long(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.body:
                    raise _too_long(limits)
                hold.add(len(chunk))
                body += chunk
    except TimeoutError as error:
        raise Refused(
            f"the body did not arrive within {limits.body_seconds:g} s", code="timeout", status=408
        ) from error
    return bytes(body)


def _too_long(limits: Limits) -> Refused:
    return Refused(
        f"the body is longer than {limits.body / MIB:g} MiB; send a smaller picture",
        code="request_too_large",
        status=413,
    )
