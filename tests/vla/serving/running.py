"""A real server on a free port, in a thread of the test, and what to send to it."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import numpy as np
import uvicorn
from PIL import Image

from vla.serving.app import Settings, create_app
from vla.serving.limits import Limits
from vla.serving.model import Model
from vla.serving.server import bind, uvicorn_config

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class Running:
    """url: of the server, without a slash at its end. client: speaks to it."""

    url: str
    port: int
    client: httpx.Client

    def chat(self, text: str, *urls: str, **fields) -> httpx.Response:
        return self.client.post(CHAT, json=chat(text, *urls, **fields))

    def metric(self, line: str) -> float:
        """The value of one line of /metrics, without its value."""
        lines = self.client.get("/metrics").text.splitlines()
        return float(next(x for x in lines if x.startswith(f"{line} ")).rpartition(" ")[2])


def chat(text: str, *urls: str, **fields) -> dict:
    """The body of a chat request."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*images, {"type": "text", "text": text}]
    return {"model": "fake", "messages": [{"role": "user", "content": content}], **fields}


@contextmanager
def running(model: Model, limits: Limits | None = None, **settings) -> Iterator[Running]:
    """Serves `model` under the name "fake" until the block ends."""
    limits = limits or Limits()
    app = create_app(model, Settings(**{"name": "fake", "limits": limits, **settings}))
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn_config(app, limits))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started)
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
                yield Running(url, port, client)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server did not stop"


def wait_until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(value: int, size: tuple[int, int] = (4, 4)) -> str:
    """A data URI of a grey picture (width, height)."""
    return data_uri(encoded(Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8))))
