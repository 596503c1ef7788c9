"""Checkpoints written beside training: copied between two updates, written by a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from vla.training import checkpoint
from vla.training.shards import staged
from vla.training.world import World

__all__ = ["Saver"]


class Saver:
    """Writes checkpoints into `folder`, one at a time; keep, keep_every: as in `checkpoint.write`.

    Its messages go through a process group of their own, so that they don't mix with training's.
    All methods but `failed` are collective. A save that fails does so in all processes, and is
    raised by the next `wait` or `save`. seconds: that the last one took.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int | None, world: World):
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.seconds = 0.0
        self._world = world.apart()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._hurry = threading.Event()
        self._last: Path | None = None

    @property
    def failed(self) -> bool:
        """Whether a save has failed in this process; the others may not have come to it yet."""
        return self._error is not None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        also: Callable[[Path], None],
    ) -> None:
        """Begin to write `folder/<step>`, as `checkpoint.write` does, after the save in flight. The
        tensors are copied to the host before this returns, and may change again."""
        self.wait()
        copies = {name: staged(values) for name, values in tensors.items()}

        def work() -> None:
            began = time.monotonic()
            try:
                self._last = checkpoint.write(
                    self.folder,
                    step,
                    copies,
                    state,
                    keep=self.keep,
                    keep_every=self.keep_every,
                    also=also,
                    world=self._world,
                    hurry=self._hurry.is_set,
                )
                self.seconds = time.monotonic() - began
            except BaseException as error:  # whatever it is, `wait` raises it in the main thread
                self._error = error

        # a daemon: a second SIGTERM ends the process at once, whatever is in flight
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> Path | None:
        """Until the save in flight is done, if one is; returns the newest that this saver wrote.
        Raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._last

    def hurry(self) -> None:
        """Leave old checkpoints where they are: the process has to end soon."""
        self._hurry.set()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception) and self._thread is not None:
            self._thread.join()  # what it may raise is not the first thing that went wrong
