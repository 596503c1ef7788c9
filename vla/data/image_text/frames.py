"""Which frames of a film are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Frames:
    """Every `stride`-th frame, the first `count` of them; 16, as in PaliGemma's transfers.

    Where there are fewer, they are shown several times over (big_vision `video_decode`). stride:
    None: as many as spread `count` frames over the film.
    """

    count: int = 16
    stride: int | None = None

    def __post_init__(self):
        if self.count < 1 or (self.stride is not None and self.stride < 1):
            raise ValueError(f"expected a count and stride of 1 or more, got {self}")

    def __call__[T](self, film: Sequence[T]) -> list[T]:
        """film: at least one frame. Returns `count` of them."""
        stride = self.stride or max(1, len(film) // self.count)
        seen = list(film[::stride])
        return (seen * -(-self.count // len(seen)))[: self.count]
