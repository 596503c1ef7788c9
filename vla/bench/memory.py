"""The most memory that something takes while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import profile

__all__ = ["allocated_at_most"]


def allocated_at_most(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that torch's allocator gave out at once while `run` ran: on a card all of them, on a
    CPU those beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with profile(profile_memory=True, acc_events=True) as seen:
        run()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    found: list[Any] = seen.profiler.kineto_results.events()
    live = most = 0
    for event in sorted((e for e in found if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most
