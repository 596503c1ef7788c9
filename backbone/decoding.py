"""How an answer is decoded, as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from backbone.beams import beam_search
from backbone.generate import Answers, best_of, generate
from backbone.paligemma import PaliGemma, TextBatch
from backbone.restriction import Allowed
from backbone.sampling import Choose, most_likely, sampler


@dataclass(frozen=True)
class Decoding:
    """Greedy unless told otherwise.

    max_new_tokens: at most so many, EOS included. beams: above 1, beam search. temperature: above
    0, tokens are drawn; then top_k and top_p cut what is drawn from, and best_of keeps the
    likeliest of so many answers.

    Raises ValueError for values out of range or that exclude each other.
    """

    max_new_tokens: int = 64
    beams: int = 1
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    best_of: int = 1

    def __post_init__(self):
        for name in ("max_new_tokens", "beams", "best_of", "top_k"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}, expected a whole number of 1 or more")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected above 0 and at most 1")
        if self.beams > 1 and (self.drawn or self.best_of > 1):
            raise ValueError("beams exclude temperature and best_of; give one or the other")
        cut = [n for n in ("top_k", "top_p") if getattr(self, n) is not None]
        cut += ["best_of"] * (self.best_of > 1)
        if cut and not self.drawn:
            raise ValueError(f"{cut[0]} needs a temperature above 0; without one nothing is drawn")

    @property
    def drawn(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature > 0

    def choose(self, generator: torch.Generator | None = None) -> Choose:
        """How one token is chosen (not for beams)."""
        if not self.drawn:
            return most_likely
        return sampler(self.temperature, self.top_k, self.top_p, generator)


def decode(
    model: PaliGemma,
    prompts: TextBatch,
    decoding: Decoding,
    generator: torch.Generator | None = None,
    allowed: Allowed | None = None,
) -> Answers:
    """Answer each prompt as `decoding` says. generator, allowed: as in `sampler` and `stream`."""
    most = decoding.max_new_tokens
    if decoding.beams > 1:
        return beam_search(model, prompts, most, decoding.beams, allowed=allowed)
    choose = decoding.choose(generator)
    if decoding.best_of > 1:
        return best_of(model, prompts, most, choose, decoding.best_of, allowed=allowed)
    return generate(model, prompts, most, choose, allowed=allowed)
