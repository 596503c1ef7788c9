"""Stop between two updates when asked to, so that a checkpoint can be saved."""

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

__all__ = ["Interrupt"]

TERMINATED_STATUS = 128 + signal.SIGTERM  # what shells and schedulers expect of a stopped process
_STDERR = 2
_HEARD = b"\nstops after this step and saves; a second signal stops at once, unsaved\n"


class Interrupt:
    """Inside the block, the first SIGTERM or Ctrl-C only sets `asked`; a second one stops at once.

    tells: what a second one does is said on standard error when the first has come.
    Outside the main thread, where Python allows no handlers, nothing changes.
    """

    def __init__(self, tells: bool = True) -> None:
        self._tells = tells
        self._signal: int | None = None
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        return self._signal is not None

    @property
    def waited(self) -> float:
        """Seconds since it was asked."""
        return time.monotonic() - self._since if self.asked else 0.0

    def finish(self) -> None:
        """Stop the process the way the signal would have: KeyboardInterrupt, or exit status 143."""
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(TERMINATED_STATUS)

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.finish()
        self._signal, self._since = number, time.monotonic()
        if self._tells:
            with suppress(OSError):  # nobody may be listening any more
                os.write(_STDERR, _HEARD)  # not through print: its buffer may be in use just now
