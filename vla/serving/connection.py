"""Connections that don't wait for ever: uvicorn's, with deadlines for slow clients."""

import asyncio
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vla.serving.limits import Limits


def patient_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The class of uvicorn's connections with these limits; give it to `uvicorn.Config(http=…)`."""

    class Connection(PatientProtocol):
        head_seconds = limits.head_seconds
        write_seconds = limits.write_seconds

    return Connection


class PatientProtocol(H11Protocol):
    """Ends a connection whose client sends its headers, or takes its answer, too slowly.

    Uvicorn itself limits how long a connection may be idle after a request; the body's time is
    limited where it is read.
    """

    head_seconds: float
    write_seconds: float
    _head: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does so for sockets that were made with IPPROTO_TCP, which `create_server`'s are
        # not; head and body are written apart, and the body would wait 40 ms for the head's ACK
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = self.loop.call_later(self.head_seconds, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head = _cancelled(self._head)
        elif self._head is None:  # the next request has begun
            self._head = self.loop.call_later(self.head_seconds, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write = _cancelled(self._write)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()  # waits for what is still to be sent
        self._write = self._write or self.loop.call_later(self.write_seconds, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._write = _cancelled(self._head), _cancelled(self._write)
        super().connection_lost(exc)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
