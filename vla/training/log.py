"""What a run reports: a line of JSON, TensorBoard, trackers and a progress bar."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vla.training.trackers import Trackers

__all__ = ["METRICS", "Log", "Stopwatch", "Window"]

METRICS = "metrics.jsonl"


class Window:
    """Running means since the last report, and the speed. `sums` is saved with a checkpoint."""

    def __init__(self, sums: Mapping[str, float] | None = None):
        self.sums: dict[str, float] = dict(sums or {})
        self._samples = self._tokens = 0
        self._seconds = self._waiting = self._flops = 0.0

    def add(
        self,
        values: Mapping[str, float],
        samples: int,
        seconds: float,
        *,
        tokens: int = 0,
        waiting: float = 0.0,
        flops: float = 0.0,
    ) -> None:
        """One update: its values, the samples and tokens it saw, how long it took, how much of that
        was waiting for data, and one card's FLOPs."""
        for name, value in {**values, "updates": 1}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self._samples += samples
        self._tokens += tokens
        self._seconds += seconds
        self._waiting += waiting
        self._flops += flops

    def means(self, peak: float | None = None) -> dict[str, float]:
        """Mean of each value, and of the updates since the start of the window or of the process:
        samples_per_second, tokens_per_second where tokens are known, data_wait (share of the time),
        and mfu where a card's `peak`, TFLOP/s, is."""
        updates = self.sums["updates"]
        means = {name: total / updates for name, total in self.sums.items() if name != "updates"}
        seconds = max(self._seconds, 1e-9)
        means["samples_per_second"] = self._samples / seconds
        if self._tokens:
            means["tokens_per_second"] = self._tokens / seconds
        means["data_wait"] = self._waiting / seconds
        if peak is not None:
            means["mfu"] = self._flops / (seconds * peak * 1e12)
        return means


class Stopwatch:
    """How long updates take, and how much of that is waiting for data, seconds; what happens
    between `lap` and `start` is not counted."""

    def start(self) -> None:
        """Count from here on, and wait for data."""
        self._began = self._since = time.perf_counter()
        self._waiting = 0.0

    def works(self) -> None:
        """Data are there."""
        self._waiting += time.perf_counter() - self._since

    def waits(self) -> None:
        """For data, from now on."""
        self._since = time.perf_counter()

    def lap(self) -> tuple[float, float]:
        """Seconds since the last one, and those of waiting among them."""
        now = time.perf_counter()
        lap = now - self._began, self._waiting
        self._began, self._waiting = now, 0.0
        return lap


class Log:
    """Writes `metrics.jsonl`, one line per report, and TensorBoard events under `tensorboard/`.

    start: updates already made. Lines of later steps, left by a killed run, are cut off.
    The progress bar shows on a terminal only; elsewhere each report is one line on stderr.
    folder None: write and show nothing, as all processes of a run do but the first.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        start: int,
        steps: int,
        tensorboard: bool,
        trackers: Trackers | None = None,
    ):
        self._trackers = trackers
        self._silent, path = folder is None, Path(os.devnull)
        self._board = None
        if folder is not None:
            path = folder / METRICS
            folder.mkdir(parents=True, exist_ok=True)
            _cut(path, start)
        if folder is not None and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._file = path.open("a", encoding="utf-8")
        hidden = self._silent or None  # None: where stderr is no terminal
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=hidden, file=sys.stderr)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._trackers is not None:
            self._trackers.close()

    def advance(self) -> None:
        """One update is done."""
        self._bar.update()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Record values after `step` updates."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._trackers is not None:
            self._trackers.report(step, values)
        short = {name: f"{value:.4g}" for name, value in values.items()}
        if self._bar.disable:
            self.say(f"step {step}: " + ", ".join(f"{k} {v}" for k, v in short.items()))
        else:
            self._bar.set_postfix(short)

    def say(self, line: str) -> None:
        """Print a line without breaking the progress bar."""
        if not self._silent:
            tqdm.write(line, file=sys.stderr)


def _cut(path: Path, step: int) -> None:
    """Keep only whole lines up to `step`."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [s for s in lines if s.endswith("\n") and json.loads(s)["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
