"""Batches prepared ahead by worker processes, and what becomes of a run whose worker is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import torch
from torch.utils.data import DataLoader, Dataset

from vla.training.faults import BadData, LostWorker
from vla.training.job import Microbatch

__all__ = ["Prefetch"]

_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_SENDERS_KNOWN = hasattr(signal, "sigwaitinfo")


class Prefetch:
    """Yields (step, its micro-batches) for each of `steps`, prepared by `workers` processes ahead,
    or by this one where there are none.

    To be used as a context around the steps, in the main thread: a worker's death may show at any
    time, since torch raises it from SIGCHLD, and again at later ones, so none is heard outside.
    Then, and where a batch takes more than `timeout` seconds, LostWorker tells the step that is
    waited for and `samples` of it. BadData where a batch can't be read. pin: tensors into pages
    that a card copies from while it computes.

    Workers hear no SIGTERM and SIGINT but those of the process that trains: schedulers and
    terminals send them to all processes of a run, whose batches are still needed to end it well.
    """

    def __init__(
        self,
        batch: Callable[[int], Sequence[Microbatch]],
        samples: Callable[[int], Sequence[str]],
        steps: range,
        workers: int = 0,
        timeout: float = 60.0,
        pin: bool = False,
    ):
        self._samples, self._steps, self._next = samples, steps, steps.start
        self._loader = DataLoader(
            _Steps(batch),
            sampler=steps,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            timeout=timeout if workers else 0,
            pin_memory=pin,
            generator=torch.Generator(),  # the loader would draw from the global one otherwise
            worker_init_fn=_listen_to_parent,
        )

    def __iter__(self) -> Iterator[tuple[int, Sequence[Microbatch]]]:
        with _signals_blocked():  # torch starts threads in a worker before it calls us
            batches = iter(self._loader)
        for step in self._steps:
            try:
                microbatches = next(batches)
            except (EOFError, ConnectionError) as error:  # it died while it handed a batch over
                raise self._lost(f"DataLoader worker hung up ({error!r})") from error
            if isinstance(microbatches, BadData):
                raise microbatches
            self._next = step + 1
            yield step, microbatches

    def __enter__(self) -> Prefetch:
        self._handler = signal.getsignal(signal.SIGCHLD)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGCHLD, self._handler or signal.SIG_DFL)
        lost = "DataLoader worker", "DataLoader timed out"  # torch has no class of its own for it
        if isinstance(error, RuntimeError) and str(error).startswith(lost):
            raise self._lost(str(error).splitlines()[0]) from error

    def _lost(self, why: str) -> LostWorker:
        samples = ", ".join(self._samples(self._next))
        return LostWorker(
            f"no batch came for step {self._next}: {why}. It reads {samples}. Run again with "
            "--workers 0 --resume to see where it stops, or with fewer workers if memory ran out"
        )


class _Steps(Dataset):
    """Item k is what step k trains on, or why it can't be read: raised in a worker, an error's
    message would grow by a traceback."""

    def __init__(self, batch: Callable[[int], Sequence[Microbatch]]):
        self.batch = batch

    def __getitem__(self, step: int) -> Sequence[Microbatch] | BadData:
        try:
            return self.batch(step)
        except (ValueError, OSError) as error:
            bad = BadData(f"the batch of step {step} can't be read: {error}")
            bad.__cause__ = error
            return bad


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes begun meanwhile are born deaf to SIGTERM and SIGINT. Where nobody can tell who
    sent one (macOS), signals are as they were."""
    if not _SENDERS_KNOWN:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen_to_parent(worker: int) -> None:
    """In a worker, before it begins."""
    if not _SENDERS_KNOWN:
        return
    parent = os.getppid()

    def listen() -> None:
        while signal.sigwaitinfo(_SIGNALS).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


def _unchanged(item: Sequence[Microbatch] | BadData) -> Sequence[Microbatch] | BadData:
    return item
