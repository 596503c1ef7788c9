"""What is random about one reading of one example: a pure function of the seed and a position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla.data.text import TextRoom
from vla.training.sampler import CHOICE, READING, stream


@dataclass(frozen=True)
class Draw:
    """The `epoch`-th reading of example `index` of `count`.

    rng: for whatever is drawn anew at each reading. room: what a row of text holds; None: anything.
    """

    rng: np.random.Generator
    seed: int
    index: int
    count: int
    epoch: int
    room: TextRoom | None = None

    @classmethod
    def at(
        cls, seed: int, index: int, count: int, epoch: int, room: TextRoom | None = None
    ) -> Draw:
        return cls(stream(seed, READING, epoch * count + index), seed, index, count, epoch, room)

    def one_of[T](self, choices: Sequence[T], after: int = 1) -> T:
        """One of them: in a random order of the example's own, the next at every epoch, all again
        when all were taken. after: the next one only after so many epochs, for a choice within one
        of `after` others.
        """
        turn = self.epoch // after
        round_, at = divmod(turn, len(choices))
        order = stream(self.seed, CHOICE, round_ * self.count + self.index)
        return choices[order.permutation(len(choices))[at]]

    def fits(self, prompt: str, answer: str) -> bool:
        """Whether a row of text holds both, with what goes around them."""
        return self.room is None or self.room.fits(prompt, answer)
