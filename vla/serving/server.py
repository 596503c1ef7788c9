"""Runs an application until it is told to stop."""

import logging
import signal
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from vla.serving.connection import patient_protocol
from vla.serving.limits import Limits

GRACE_SECONDS = 10  # for answers that are on their way when SIGTERM comes


def uvicorn_config(app: ASGIApp, limits: Limits) -> uvicorn.Config:
    """How uvicorn runs `app`: no websockets, no trust in a proxy's headers, our deadlines."""
    return uvicorn.Config(
        app,
        http=patient_protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=int(limits.idle_seconds),
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError that names host and port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(error.errno, f"can't listen on port {port} of {host} ({error})") from error


def run(app: ASGIApp, listener: socket.socket, limits: Limits, greeting: str) -> None:
    """Serve `app` until SIGTERM or Ctrl-C, then finish what has begun, for `GRACE_SECONDS`.

    greeting: printed once both the listener and SIGTERM are taken care of.
    Returns after SIGTERM; raises KeyboardInterrupt after Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    server = uvicorn.Server(uvicorn_config(app, limits))

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn catches the signal, and raises it again for the handler that was there before
    signal.signal(signal.SIGTERM, stop)
    print(greeting, flush=True)
    server.run([listener])
