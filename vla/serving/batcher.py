"""Answers that wait are generated side by side, by one thread that owns the model.

A batch starts when it is full, or when its oldest answer has waited `patience` seconds. Those that
come while the model is busy are the next batch.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from vla.serving.metrics import Metrics
from vla.serving.model import Ask, Model, Token
from vla.serving.refusal import Refused, busy
from vla.serving.transcript import Transcript

Piece = tuple[str, tuple[Token, ...]]  # text that can be sent, and the tokens that made it
Pieces = asyncio.Queue[tuple[int, Piece | None]]


class ModelFailed(Exception):
    """The model raised an error (its cause) while it answered this job and others beside it."""


@dataclass(frozen=True)
class Answer:
    """A whole answer. complete: the model, or a stop text, ended it, not `max_tokens`.

    waited, took: seconds in the queue and in the model. batch: answers generated side by side.
    """

    text: str
    tokens: tuple[Token, ...]
    complete: bool
    waited: float
    took: float
    batch: int


@dataclass(eq=False)
class Job:
    """An answer that is waited for.

    index: its place among those submitted together. done: resolves to its `Answer`; cancelling it
    ends the work on it. pieces: where given, gets (index, text) as it comes, and (index, None) at
    the end or after a failure.
    """

    ask: Ask
    index: int
    transcript: Transcript
    done: asyncio.Future[Answer]
    pieces: Pieces | None
    asked: float = field(default_factory=time.monotonic)
    started: float = 0.0
    unsent: list[Token] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        return not self.done.done() and not self.transcript.stopped


class Batcher:
    """Collects jobs, runs them in batches. All methods belong to the event loop's thread."""

    def __init__(
        self,
        model: Model,
        metrics: Metrics,
        *,
        max_batch: int = 16,
        patience: float = 0.005,
        queue: int = 128,
        wait_seconds: float = 60.0,
    ):
        """patience: seconds that an idle model waits for company. queue: jobs that may wait.
        wait_seconds: a job that waited longer is refused (503) rather than begun.
        """
        self._model, self._metrics = model, metrics
        self._max_batch, self._patience = max_batch, patience
        self._queue, self._wait_seconds = queue, wait_seconds
        self._waiting: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Batcher":
        self._task = asyncio.create_task(self._run(), name="batcher")
        self._task.add_done_callback(self._refuse_all)
        return self

    async def __aexit__(self, *error: object) -> None:
        """Ends at once: whoever still waits is refused."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _refuse_all(self, ended: asyncio.Task[None]) -> None:
        while self._waiting:
            _fail(self._waiting.popleft(), Refused("the server is shutting down", status=503))

    @property
    def waiting(self) -> int:
        """Jobs in the queue, of which some may not be wanted any more."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether jobs are being worked on."""
        return self._task is not None and not self._task.done()

    def check_room(self, count: int = 1) -> None:
        """Raises `Refused` (429) where the queue can't take `count` more."""
        if len(self._waiting) + count > self._queue:
            self._drop_unwanted()
        if len(self._waiting) + count > self._queue:
            raise busy(len(self._waiting))

    def submit(
        self, asks: Sequence[Ask], stops: Sequence[str] = (), pieces: Pieces | None = None
    ) -> list[Job]:
        """Queues all of `asks` or none. Raises `Refused` (429) where the queue is full."""
        if not self.alive:
            raise RuntimeError("the batcher has ended; see the log for why")
        self.check_room(len(asks))
        loop = asyncio.get_running_loop()
        jobs = [
            Job(ask, i, Transcript(self._model.text, stops), loop.create_future(), pieces)
            for i, ask in enumerate(asks)
        ]
        self._waiting.extend(jobs)
        self._arrived.set()
        return jobs

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            now = time.monotonic()
            for job in batch:
                job.started = now
                self._metrics.waited.add(now - job.asked)
            self._metrics.batch.add(len(batch))
            future = loop.run_in_executor(self._thread, self._generate, batch, loop)
            await asyncio.wait([future])
            error = future.exception()
            if error is not None:
                self._metrics.model_errors.add()
                for job in batch:
                    failure = ModelFailed(f"in a batch of {len(batch)}")
                    failure.__cause__ = error
                    _fail(job, failure)

    async def _next_batch(self) -> list[Job]:
        """At least one job that is still wanted, and what else waits then."""
        while True:
            await self._arrived.wait()
            self._drop_unwanted()
            if self._waiting and len(self._waiting) < self._max_batch:
                rest = self._patience - (time.monotonic() - self._waiting[0].asked)
                if rest > 0:
                    await self._company(rest)
                    self._drop_unwanted()
            count = min(len(self._waiting), self._max_batch)
            batch = [self._waiting.popleft() for _ in range(count)]
            if not self._waiting:
                self._arrived.clear()
            if batch:
                return batch

    async def _company(self, seconds: float) -> None:
        """Waits for a full batch, or until the time is over."""
        end = time.monotonic() + seconds
        while len(self._waiting) < self._max_batch and (rest := end - time.monotonic()) > 0:
            self._arrived.clear()
            timer = asyncio.create_task(self._arrived.wait())
            await asyncio.wait([timer], timeout=rest)
            timer.cancel()

    def _drop_unwanted(self) -> None:
        """Leaves out who went away, and refuses who waited too long."""
        latest = time.monotonic() - self._wait_seconds
        kept: deque[Job] = deque()
        for job in self._waiting:
            if job.wanted and job.asked < latest:
                _fail(job, _too_late(self._wait_seconds))
            elif job.wanted:
                kept.append(job)
        self._waiting = kept

    def _generate(self, batch: list[Job], loop: asyncio.AbstractEventLoop) -> None:
        """Runs in the model's thread."""
        open_jobs = set(range(len(batch)))
        for row in self._model.decode([job.ask for job in batch], lambda i: batch[i].wanted):
            news: list[tuple[Job, Piece]] = []
            ended: list[tuple[Job, Answer]] = []
            for i in sorted(open_jobs):
                job, token = batch[i], row[i]
                text = job.transcript.finish() if token is None else job.transcript.add(token)
                job.unsent += [] if token is None else [token]
                over = token is None or job.transcript.stopped
                if job.pieces is not None and (text or (over and job.unsent)):
                    news.append((job, (text, tuple(job.unsent))))
                    job.unsent.clear()
                if over:
                    open_jobs.discard(i)
                    ended.append((job, _answer(job, len(batch))))
            if news or ended:
                loop.call_soon_threadsafe(self._deliver, news, ended)
        assert not open_jobs, "the model ended before all answers had"

    def _deliver(self, news: list[tuple[Job, Piece]], ended: list[tuple[Job, Answer]]) -> None:
        """Hands over what the model's thread made; runs in the loop's thread."""
        for job, piece in news:
            if job.pieces is not None:
                job.pieces.put_nowait((job.index, piece))
        for job, answer in ended:
            if job.done.done():
                continue
            self._metrics.tokens.add(len(answer.tokens))
            job.done.set_result(answer)
            if job.pieces is not None:
                job.pieces.put_nowait((job.index, None))


def _answer(job: Job, batch: int) -> Answer:
    transcript = job.transcript
    return Answer(
        transcript.text,
        tuple(transcript.tokens),
        transcript.stopped or len(transcript.tokens) < job.ask.max_tokens,
        job.started - job.asked,
        time.monotonic() - job.started,
        batch,
    )


def _fail(job: Job, error: Exception) -> None:
    if not job.done.done():
        job.done.set_exception(error)
        job.done.exception()  # somebody may have stopped listening; that is no fault
    if job.pieces is not None:
        job.pieces.put_nowait((job.index, None))


def _too_late(seconds: float) -> Refused:
    return Refused(
        f"no answer was begun within {seconds:g} s; try again later",
        code="timeout",
        status=503,
        headers={"Retry-After": "5"},
    )
