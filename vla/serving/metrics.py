"""Counts and distributions in Prometheus' text format (version 0.0.4)."""

import bisect
import itertools
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Counter:
    """Goes up only; one count for each value of its label."""

    def __init__(self, name: str, help: str, label: str = ""):
        self.name, self.help, self._label = name, help, label
        self._counts: dict[str, int] = {} if label else {"": 0}
        self._lock = threading.Lock()

    def add(self, count: int = 1, label: str = "") -> None:
        with self._lock:
            self._counts[label] = self._counts.get(label, 0) + count

    def value(self, label: str = "") -> int:
        return self._counts.get(label, 0)

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "counter")
        for value, count in sorted(self._counts.items()):
            label = f'{{{self._label}="{value}"}}' if self._label else ""
            yield f"{self.name}{label} {count}"


class Histogram:
    """How many values were at most each bound, and their sum."""

    def __init__(self, name: str, help: str, bounds: tuple[float, ...]):
        self.name, self.help, self._bounds = name, help, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        with self._lock:
            self._counts[bisect.bisect_left(self._bounds, value)] += 1
            self._sum += value

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "histogram")
        *counts, total = itertools.accumulate(self._counts)
        for bound, count in zip(self._bounds, counts, strict=True):
            yield f'{self.name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{self.name}_bucket{{le="+Inf"}} {total}'
        yield f"{self.name}_sum {self._sum:.6f}"
        yield f"{self.name}_count {total}"


class Metrics:
    """All that the server counts."""

    def __init__(self) -> None:
        self.requests = Counter("vla_requests_total", "Answered requests by status.", "status")
        self.cancelled = Counter("vla_cancelled_total", "Requests whose client went away.")
        self.model_errors = Counter("vla_model_errors_total", "Batches that ended in an error.")
        self.tokens = Counter("vla_tokens_total", "Generated tokens.")
        self.seconds = Histogram("vla_request_seconds", "From headers to the end.", SECONDS)
        self.waited = Histogram("vla_queue_seconds", "Wait for the model.", SECONDS)
        self.batch = Histogram("vla_batch_size", "Answers generated side by side.", BATCHES)

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """The page. gauges: name → (help, present value)."""
        lines = itertools.chain.from_iterable(m.lines() for m in vars(self).values())
        extra = (
            line
            for name, (help, value) in gauges.items()
            for line in (*_head(name, help, "gauge"), f"{name} {value:g}")
        )
        return "\n".join([*lines, *extra]) + "\n"


def memory() -> int:
    """Bytes of memory that this process occupies; 0 where the system doesn't say (not Linux)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _head(name: str, help: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {help}", f"# TYPE {name} {kind}"
