"""A Chrome trace of some steps: what ran when, on the host and on the card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["Trace"]


class Trace:
    """Records the steps from `steps[0]` up to, without, `steps[1]`; None: none.

    Writes `folder`/trace/<first>-<last>.<rank>.json, for Perfetto or chrome://tracing.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, rank: int):
        self._steps, self._folder, self._rank = steps, folder, rank
        self._running: Any = None
        self._first = self._now = 0

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._running is None:
            return
        if kind is None:
            self._write(self._now + 1)
        else:
            self._running.stop()

    def at(self, step: int) -> Path | None:
        """`step` is about to start. Returns the file where it ended what was to be recorded."""
        if self._steps is None:
            return None
        start, stop = self._steps
        self._now = step
        if self._running is None and start <= step < stop:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._running = profile(activities=activities, record_shapes=True, acc_events=True)
            self._running.start()
            self._first = step
        return self._write(step) if self._running is not None and step >= stop else None

    def _write(self, stop: int) -> Path:
        self._running.stop()
        path = self._folder / f"trace/{self._first}-{stop}.{self._rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial.json")
        self._running.export_chrome_trace(str(temporary))
        os.replace(temporary, path)
        self._running = None
        return path
