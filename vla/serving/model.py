"""What the server asks of a model, and what it gets: the border that tests put a fake behind."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from backbone.detections import Detection


@dataclass(frozen=True)
class Ask:
    """One answer to be generated.

    prompt: as the model reads it, without the newline that ends it. images: what `Model.prepare`
    made of each. max_tokens: at least 1. temperature: 0 takes the likeliest token always. top_p: in
    (0, 1]. seed: of the draws; None for another one each time. alternatives: how many of the
    likeliest tokens to report at each step, at least 0; None if no log probabilities are wanted.
    """

    prompt: str
    images: tuple[Any, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    alternatives: int | None = None


@dataclass(frozen=True)
class Token:
    """One generated token. logprob, likeliest: (id, log probability) pairs, where asked for."""

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Model(Protocol):
    """A vision-language model as the server uses it.

    `decode` is called from one thread only, and never twice at a time; the others from any.
    """

    def prepare(self, image: np.ndarray) -> Any:
        """A picture, uint8 RGB [H, W, 3], as `decode` takes it, no larger than the model needs."""
        ...

    def decode(
        self, asks: Sequence[Ask], wanted: Callable[[int], bool]
    ) -> Iterator[Sequence[Token | None]]:
        """Answers all of `asks` side by side, a token each per step.

        Yields a row per ask: its next token, or None once its answer has ended or is not `wanted`
        any more (`wanted(i)` of the ask's place is looked at before every step). Ends when all
        have. The end-of-sequence token is not yielded.
        """
        ...

    def prompt_tokens(self, ask: Ask) -> int:
        """Length of what the model reads before it answers, pictures included."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated tokens; `\\ufffd` where they end within a character."""
        ...

    def piece(self, id: int) -> bytes:
        """What one token stands for, part of UTF-8 text."""
        ...

    def masks(self, found: Sequence[Detection]) -> list[np.ndarray | None]:
        """The mask within each box, uint8 [64, 64], 255 inside; None where there is none."""
        ...
