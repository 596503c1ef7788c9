"""Losses that stand out from those before them."""

import math

__all__ = ["Spikes"]


class Spikes:
    """Tells a loss that is more than `width` deviations above the running mean.

    Mean and deviation are exponential averages over about `span` steps; the first `span` losses are
    never called a spike.
    """

    def __init__(self, width: float = 6.0, span: int = 100):
        self.width, self._weight, self._left = width, 2 / (span + 1), span
        self._mean = self._square = 0.0

    def add(self, loss: float) -> bool:
        """Whether this loss is one; it counts among those before the next."""
        spread = math.sqrt(max(self._square - self._mean**2, 0.0))
        told = self._left <= 0 and loss > self._mean + self.width * spread
        weight = self._weight if self._mean or self._square else 1.0
        self._mean += weight * (loss - self._mean)
        self._square += weight * (loss**2 - self._square)
        self._left -= 1
        return told
