"""The server's routes: OpenAI's endpoints, health, metrics and the page."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from vla.serving.access import Gate
from vla.serving.answers import Reply
from vla.serving.batcher import Answer, Batcher, Job, ModelFailed, Piece, Pieces
from vla.serving.body import Budget, read_body
from vla.serving.findings import findings
from vla.serving.limits import Limits
from vla.serving.metrics import Metrics, memory
from vla.serving.model import Ask, Model
from vla.serving.observe import Observe, request_id
from vla.serving.page import page_response
from vla.serving.pictures import Picture, data_bytes, is_data, read_picture
from vla.serving.protocol import Link, Question, parse_chat, parse_completion, parse_json
from vla.serving.refusal import Refused
from vla.serving.remote import Remote
from vla.serving.responses import EventStream, json_response, refusal_response, unless_gone

Parse = Callable[[Any, Limits], Question]
Found = dict[str, Any]

logger = logging.getLogger("vla.serving")


@dataclass(frozen=True)
class Settings:
    """name: of the model, as requests say it. key: what they must carry; None for no key.
    remote: fetches pictures by URL; None where only data URIs are taken. max_batch, patience: as
    for `Batcher`.
    """

    name: str
    key: str | None = None
    remote: Remote | None = None
    max_batch: int = 16
    patience: float = 0.005
    limits: Limits = field(default_factory=Limits)


def create_app(model: Model, settings: Settings) -> ASGIApp:
    """An ASGI application that answers with `model`. It runs while its lifespan does."""
    service = Service(model, settings)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/completions", service.completion, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.one_model),
            Route("/healthz", service.alive),
            Route("/health", service.alive),
            Route("/readyz", service.ready),
            Route("/metrics", service.metrics_page),
            Route("/", service.page),
        ],
        middleware=[Middleware(Gate, key=settings.key)],
        exception_handlers={
            Refused: _refused,
            ClientDisconnect: _gone,
            HTTPException: _no_route,
            ModelFailed: _failed,
            Exception: _failed,
        },
        lifespan=service.lifespan,
    )
    return Observe(app, service.metrics, settings.limits)


class Service:
    """What the routes share: one model, its queue, and what is counted."""

    def __init__(self, model: Model, settings: Settings):
        self._model, self._settings, self._limits = model, settings, settings.limits
        self.metrics = Metrics()
        self._bodies = Budget(self._limits.bodies)
        self._readers = ThreadPoolExecutor(self._limits.readers, "reader")
        self._started = time.time()
        self._batcher = Batcher(
            model,
            self.metrics,
            max_batch=settings.max_batch,
            patience=settings.patience,
            queue=self._limits.queue,
            wait_seconds=self._limits.wait_seconds,
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self._batcher:
            yield
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, parse_chat)

    async def completion(self, request: Request) -> Response:
        return await self._answer(request, parse_completion)

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._description()]})

    async def one_model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return json_response(self._description())

    async def alive(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        ready = self._batcher.alive
        return json_response({"status": "ok" if ready else "stopped"}, 200 if ready else 503)

    async def metrics_page(self, request: Request) -> Response:
        gauges = {
            "vla_queue_length": ("Answers that wait for the model.", self._batcher.waiting),
            "vla_body_bytes": ("Bytes of requests being read.", self._bodies.held),
            "vla_resident_bytes": ("Memory of the process.", memory()),
            "vla_start_time_seconds": ("When the server started.", self._started),
        }
        return PlainTextResponse(self.metrics.text(gauges), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        return page_response()

    async def _answer(self, request: Request, parse: Parse) -> Response:
        self._batcher.check_room()
        with self._bodies.hold() as hold:
            body = await read_body(request, self._limits, hold)
            question, pictures = await self._read(body, parse)
        del body
        asks = [_ask(question, pictures, i) for i in range(question.n)]
        pieces: Pieces | None = asyncio.Queue() if question.stream else None
        jobs = self._batcher.submit(asks, question.stop, pieces)
        sizes = [picture.size for picture in pictures]
        reply = Reply(question, self._model.piece)
        with ExitStack() as unfinished:
            unfinished.callback(_cancel, jobs)
            if pieces is None:
                return await unless_gone(request.receive, self._whole(reply, jobs, sizes))
            first = await unless_gone(request.receive, _first(pieces, jobs))
            close = unfinished.pop_all().close
        id = request_id(request.scope)
        return EventStream(self._stream(reply, jobs, sizes, pieces, first, id), close)

    async def _read(self, body: bytes, parse: Parse) -> tuple[Question, list[Picture]]:
        """The request's meaning, and its pictures as the model takes them."""
        question = await self._in_reader(partial(self._parse, body, parse))
        remote = [link for link in question.links if not is_data(link)]
        fetched = {link: await self._fetch(link) for link in remote}
        return question, await self._in_reader(partial(self._open, question.links, fetched))

    def _parse(self, body: bytes, parse: Parse) -> Question:
        question = parse(parse_json(body), self._limits)
        self._check_model(question.model)
        return question

    def _open(self, links: Sequence[Link], fetched: dict[Link, bytes]) -> list[Picture]:
        return [
            read_picture(
                fetched[link] if link in fetched else data_bytes(link),
                link.path,
                self._model.prepare,
            )
            for link in links
        ]

    async def _fetch(self, link: Link) -> bytes:
        if self._settings.remote is None:
            raise Refused(
                f"{link.path}: only data URIs are taken here (data:image/png;base64,…)",
                link.path,
                "invalid_image_url",
            )
        return await self._settings.remote.fetch(link.url, link.path)

    async def _in_reader[T](self, work: Callable[[], T]) -> T:
        """What `work` returns, run in a thread for pictures and long texts."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def _whole(self, reply: Reply, jobs: list[Job], sizes: list[tuple[int, int]]) -> Response:
        answers = await asyncio.gather(*(job.done for job in jobs))
        found = [await self._findings(answer, sizes) for answer in answers]
        prompt_tokens = self._model.prompt_tokens(jobs[0].ask)
        return json_response(reply.whole(answers, found, prompt_tokens), headers=_timing(answers))

    async def _stream(
        self,
        reply: Reply,
        jobs: list[Job],
        sizes: list[tuple[int, int]],
        pieces: Pieces,
        first: tuple[int, Piece | None],
        id: str,
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of an answer. first: what has been taken from `pieces` already."""
        answers: dict[int, Answer] = {}
        lengths = [0] * len(jobs)
        try:
            if reply.question.chat:
                for job in jobs:
                    yield reply.opening(job.index)
            index, piece = first
            while True:
                if piece is not None:
                    text, tokens = piece
                    yield reply.piece(index, text, tokens, lengths[index])
                    lengths[index] += len(text)
                else:
                    answers[index] = answer = await jobs[index].done
                    yield reply.closing(index, answer, await self._findings(answer, sizes))
                if len(answers) == len(jobs):
                    break
                index, piece = await pieces.get()
            if reply.question.usage:
                prompt_tokens = self._model.prompt_tokens(jobs[0].ask)
                yield reply.usage([answers[job.index] for job in jobs], prompt_tokens)
        except (Refused, ModelFailed) as error:
            yield _failure(error, id).as_json()

    async def _findings(self, answer: Answer, sizes: list[tuple[int, int]]) -> Found:
        read = partial(findings, answer.text, sizes, self._model.masks)
        found = await self._in_reader(read) if "<loc" in answer.text else read()
        milliseconds = {"queue": answer.waited, "model": answer.took}
        found["milliseconds"] = {name: round(1e3 * s, 2) for name, s in milliseconds.items()}
        return found | {"batch": answer.batch}

    def _check_model(self, name: str) -> None:
        if name != self._settings.name:
            raise Refused(
                f"there is no model {name[:80]!a}; this server has {self._settings.name!a}",
                "model",
                "model_not_found",
                404,
            )

    def _description(self) -> dict[str, Any]:
        created = int(self._started)
        return {
            "id": self._settings.name,
            "object": "model",
            "created": created,
            "owned_by": "vla",
        }


def _ask(question: Question, pictures: Sequence[Picture], index: int) -> Ask:
    """The `index`-th answer to a question: with a seed, each answer has one of its own."""
    return Ask(
        question.prompt,
        tuple(picture.prepared for picture in pictures),
        question.max_tokens,
        question.temperature,
        question.top_p,
        None if question.seed is None else question.seed + index,
        question.alternatives,
    )


async def _first(pieces: Pieces, jobs: list[Job]) -> tuple[int, Piece | None]:
    """Waits for the first piece, so that what fails before it is answered with a status."""
    index, piece = await pieces.get()
    if piece is None:
        await jobs[index].done
    return index, piece


def _cancel(jobs: list[Job]) -> None:
    for job in jobs:
        job.done.cancel()


def _timing(answers: Sequence[Answer]) -> dict[str, str]:
    """Where the time went, as browsers and proxies read it."""
    waited, took = max(a.waited for a in answers), max(a.took for a in answers)
    return {"Server-Timing": f"queue;dur={1e3 * waited:.1f}, model;dur={1e3 * took:.1f}"}


def _failure(error: Refused | ModelFailed, id: str) -> Refused:
    """What the client is told; what really happened stands in the log."""
    if isinstance(error, Refused):
        return error
    logger.error("%s failed", id, exc_info=error)
    return _internal(id)


def _internal(id: str) -> Refused:
    return Refused(f"the server failed; its log has more under {id}", code="internal", status=500)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal_response(error)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the log does


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:80]!a}: {error.detail}"
    refused = Refused(message, code="no_route", status=error.status_code)
    refused.headers |= dict(error.headers or {})
    return refusal_response(refused)


async def _failed(request: Request, error: Exception) -> Response:
    id = request_id(request.scope)
    logger.error("%s failed", id, exc_info=error)
    refused = _internal(id)
    refused.headers["Connection"] = "close"  # as uvicorn does after a bug
    return refusal_response(refused)
