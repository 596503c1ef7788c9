"""A model without weights: it spells an answer that names its prompt and its pictures."""

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from backbone.detections import Detection
from vla.serving.model import Ask, Token


def answer_to(prompt: str, pictures: Sequence[int] = ()) -> str:
    """What the fake says: letters of the prompt, and the sum of each picture's bytes."""
    return f"[{prompt}]" + "".join(f"({p})" for p in pictures)


class FakeModel:
    """A `vla.serving.model.Model` whose tokens are the bytes of its answer.

    "explode" in a prompt raises. gate: where given, every step waits for it. batches: the prompts
    of each batch. steps: how often it was asked for another token.
    """

    def __init__(self, gate: threading.Event | None = None):
        self.gate = gate
        self.batches: list[list[str]] = []
        self.steps = 0

    def prepare(self, image: np.ndarray) -> int:
        return int(image.sum())

    def decode(
        self, asks: Sequence[Ask], wanted: Callable[[int], bool]
    ) -> Iterator[list[Token | None]]:
        self.batches.append([ask.prompt for ask in asks])
        if any("explode" in ask.prompt for ask in asks):
            raise ArithmeticError("secret detail of the model")
        answers = [answer_to(a.prompt, a.images).encode()[: a.max_tokens] for a in asks]
        rows = range(len(asks))
        step, live = 0, set(rows)
        while live:
            if self.gate is not None and not self.gate.wait(timeout=30):
                return  # a thread that waited for ever would keep the tests from ending
            self.steps += 1
            live = {i for i in live if wanted(i) and step < len(answers[i])}
            yield [self._token(answers[i][step], asks[i]) if i in live else None for i in rows]
            step += 1

    def _token(self, byte: int, ask: Ask) -> Token:
        if ask.alternatives is None:
            return Token(byte)
        return Token(byte, -0.5, tuple((byte + i, -0.5 - i) for i in range(ask.alternatives)))

    def prompt_tokens(self, ask: Ask) -> int:
        return len(ask.prompt) + 10 * len(ask.images)

    def text(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    def piece(self, id: int) -> bytes:
        return bytes([id % 256])

    def masks(self, found: Sequence[Detection]) -> list[np.ndarray | None]:
        """A mask whose left half is inside, for things that have codes."""
        half = np.zeros((64, 64), np.uint8)
        half[:, :32] = 255
        return [half if item.codes else None for item in found]
