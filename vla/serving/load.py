"""A load test: many clients at once, every answer compared with one that was computed alone.

    python -m vla.serving.load --clients 64 --seconds 60

Questions about tabletop scenes are answered one by one first, without a server. Then a server is
started on this machine twice, with batches and without, and asked by all clients for a while.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from envs.tabletop.render import render
from envs.tabletop.scene import EASY, STANDARD, sample_scene
from vla.assets import PALIGEMMA_TABLETOP
from vla.serving.model import Ask, Model

NAME = "load"  # what the server calls the model
MAX_TOKENS = 64
PROMPTS = ("caption en", "answer en how many objects are there?", "detect {} ; {}")


@dataclass(frozen=True)
class Question:
    """A picture (PNG) with a prompt, and the answer that is right."""

    prompt: str
    picture: bytes
    answer: str


@dataclass(frozen=True)
class Result:
    """seconds: each answer's latency. wrong: answers that were another question's, or no answer at
    all (another status). busy: refusals with 429. wall: seconds in all.
    """

    seconds: tuple[float, ...]
    wrong: int
    busy: int
    wall: float

    def line(self, name: str) -> str:
        """Throughput and latency for people."""
        ms = np.array(self.seconds) * 1e3
        p50, p99 = np.percentile(ms, [50, 99]) if len(ms) else (np.nan, np.nan)
        return (
            f"{name:<14}{len(ms):>8}{len(ms) / self.wall:>10.1f}{p50:>9.0f}{p99:>9.0f}"
            f"{self.wrong:>7}{self.busy:>6}"
        )


HEAD = f"{'':<14}{'answers':>8}{'per s':>10}{'p50 ms':>9}{'p99 ms':>9}{'wrong':>7}{'429':>6}"


def questions(model: Model, count: int, image_size: int, seed: int = 0) -> list[Question]:
    """`count` questions about as many scenes, answered one by one."""
    rng = np.random.default_rng(seed)
    return [_question(model, rng, i, image_size) for i in range(count)]


def _question(model: Model, rng: np.random.Generator, i: int, image_size: int) -> Question:
    scene = sample_scene(rng, STANDARD if i % 2 else EASY)
    names = sorted({f"{item.colour} {item.shape}" for item in scene.items})
    prompt = PROMPTS[i % len(PROMPTS)].format(*rng.permutation(names)[:2])
    pixels = render(scene, "top", image_size)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    ask = Ask(prompt, (model.prepare(pixels),), MAX_TOKENS)
    ids = [row[0].id for row in model.decode([ask], lambda _: True) if row[0] is not None]
    return Question(prompt, file.getvalue(), model.text(ids))


async def drive(url: str, asked: Sequence[Question], clients: int, seconds: float) -> Result:
    """Lets `clients` ask `url` for `seconds`, each one question after the other."""
    address = urlsplit(url)
    requests = [(_request(question), question.answer) for question in asked]
    latencies: list[float] = []
    counts = {"wrong": 0, "busy": 0}
    start = time.perf_counter()

    async def client(number: int) -> None:
        draw = random.Random(number)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while time.perf_counter() - start < seconds:
            request, answer = draw.choice(requests)
            begin = time.perf_counter()
            writer.write(request)
            status, body = await _response(reader)
            if status == 429:
                counts["busy"] += 1
                await asyncio.sleep(0.1)
                continue
            latencies.append(time.perf_counter() - begin)
            right = status == 200 and json.loads(body)["choices"][0]["message"]["content"] == answer
            counts["wrong"] += not right
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client(i) for i in range(clients)))
    return Result(tuple(latencies), counts["wrong"], counts["busy"], time.perf_counter() - start)


def _request(question: Question) -> bytes:
    uri = f"data:image/png;base64,{base64.b64encode(question.picture).decode()}"
    image = {"type": "image_url", "image_url": {"url": uri}}
    content = [image, {"type": "text", "text": question.prompt}]
    messages = [{"role": "user", "content": content}]
    body = json.dumps({"model": NAME, "max_tokens": MAX_TOKENS, "messages": messages}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one response that states its length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: ([0-9]+)", head, re.IGNORECASE)
    assert length is not None, head
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length[1]))


@contextmanager
def served(folder: Path, max_batch: int, queue: int) -> Iterator[str]:
    """The URL of a server in a process of its own. AssertionError if it doesn't end well."""
    command = [sys.executable, "-m", "vla", "serve", "vlm", "--model", str(folder), "--name", NAME]
    command += ["--port", "0", "--max-batch", str(max_batch), "--queue", str(queue)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " at http" in line, f"the server did not start: {line!r}"
        yield line.split()[-1]
    finally:
        process.terminate()
        status = process.wait(30)
        if process.stdout is not None:
            process.stdout.close()
    assert status == 0, f"the server ended with status {status}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table. Exit status 1 for any wrong answer."""
    parser = argparse.ArgumentParser(prog="python -m vla.serving.load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", type=Path, default=PALIGEMMA_TABLETOP, metavar="DIR")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the two runs")
    parser.add_argument("--scenes", type=int, default=240, help="different questions")
    parser.add_argument("--max-batch", type=int, default=16)
    args = parser.parse_args(arguments)

    from backbone.vlm import VLM
    from vla.serving.engine import Engine

    engine = Engine(VLM.from_pretrained(args.model, dtype="float32"))
    start = time.perf_counter()
    asked = questions(engine, args.scenes, engine.resolution)
    alone = len(asked) / (time.perf_counter() - start)
    print(f"{len(asked)} questions answered one by one, without a server: {alone:.1f} per s")
    print(f"{args.clients} clients, {args.seconds:g} s, {os.cpu_count()} cores\n{HEAD}", flush=True)
    wrong = 0
    for name, size in ((f"batches of {args.max_batch}", args.max_batch), ("one by one", 1)):
        with served(args.model, size, max(128, args.clients)) as url:
            result = asyncio.run(drive(url, asked, args.clients, args.seconds))
        print(result.line(name), flush=True)
        wrong += result.wrong
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
