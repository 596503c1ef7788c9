"""How much one request, and all of them together, may ask for."""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What is refused, with a clear answer, rather than tried.

    Of one request:
    body: bytes; reading stops there. body_seconds: time for it to arrive.
    prompt: bytes of UTF-8. images: pictures. choices: `n`. stops, stop_length: number of stop
    texts, characters of each. max_tokens: of an answer; default_tokens where none is given.
    alternatives: `top_logprobs`. wait_seconds: the longest stay in the queue.

    Of all requests:
    bodies: bytes of requests being read and parsed. queue: answers that wait for the model; one
    more is answered 429. connections: sockets. readers: threads that open pictures.
    head_seconds: for a request's first line and headers to arrive. idle_seconds: a connection
    without a request. write_seconds: for a client to take what it asked for.
    """

    body: int = 10 * MIB
    body_seconds: float = 30.0
    prompt: int = 2048
    images: int = 8
    choices: int = 8
    stops: int = 4
    stop_length: int = 64
    max_tokens: int = 512
    default_tokens: int = 128
    alternatives: int = 5
    wait_seconds: float = 60.0

    bodies: int = 256 * MIB
    queue: int = 128
    connections: int = 1024
    readers: int = 2
    head_seconds: float = 10.0
    idle_seconds: float = 15.0
    write_seconds: float = 30.0
