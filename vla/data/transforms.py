"""What happens to states and actions on their way into the model, and back.

Each transform has `forward` (robot → model) and `inverse` (model → robot) side by side; both take
and return float32 [..., D] and neither changes its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla.data.stats import FeatureStats

EPSILON = 1e-6  # openpi `transforms.py`: Normalize
CONSTANT = 1e-4  # a narrower spread than this, in the feature's unit, is no motion


class Transform(Protocol):
    def forward(self, x: np.ndarray) -> np.ndarray: ...

    def inverse(self, x: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class MeanStd:
    """(x − mean) / (std + 1e-6), as openpi's π0.

    A dimension whose std is below 1e-4 did not move in the demonstrations: it is centred and not
    scaled, where openpi would multiply the smallest deviation by up to a million.
    """

    stats: FeatureStats

    def forward(self, x: np.ndarray) -> np.ndarray:
        x = _float32(x, self.stats.dim)
        return (x - self.stats.mean) / _scale(self.stats.std)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        return _float32(x, self.stats.dim) * _scale(self.stats.std) + self.stats.mean


@dataclass(frozen=True)
class Quantile:
    """2 (x − q01) / (q99 − q01 + 1e-6) − 1, as openpi's π0.5.

    Most values fall in [-1, 1]; none is clipped. A dimension with q99 − q01 below 1e-4 is centred
    on q01 and not scaled.
    Raises ValueError if the statistics have no quantiles.
    """

    stats: FeatureStats

    def __post_init__(self):
        if self.stats.q01 is None or self.stats.q99 is None:
            raise ValueError(
                "the statistics have no q01 and q99; compute them again, or use MeanStd"
            )

    def forward(self, x: np.ndarray) -> np.ndarray:
        low, half = self._range()
        return (_float32(x, self.stats.dim) - low) / half - np.float32(1)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        low, half = self._range()
        return (_float32(x, self.stats.dim) + np.float32(1)) * half + low

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.stats.q01, self.stats.q99
        assert low is not None
        assert high is not None
        moves = high - low >= CONSTANT
        half = np.where(moves, (high - low + np.float32(EPSILON)) / 2, np.float32(1))
        return np.where(moves, low, low - 1), half  # low − 1: a constant q01 becomes 0


@dataclass(frozen=True)
class PadDims:
    """Zeros after the last dimension up to the model's `width`; the inverse cuts them off.

    Raises ValueError if `dims` do not fit into `width`.
    """

    dims: int
    width: int

    def __post_init__(self):
        if not 0 < self.dims <= self.width:
            raise ValueError(
                f"{self.dims} dimensions do not fit the model's {self.width}; "
                "give the model a larger state_dim or action_dim"
            )

    def forward(self, x: np.ndarray) -> np.ndarray:
        x = _float32(x, self.dims)
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, self.width - self.dims)])

    def inverse(self, x: np.ndarray) -> np.ndarray:
        return _float32(x, self.width)[..., : self.dims]


@dataclass(frozen=True)
class Compose:
    """Transforms one after the other; the inverse goes back in the opposite order."""

    steps: Sequence[Transform]

    def forward(self, x: np.ndarray) -> np.ndarray:
        for step in self.steps:
            x = step.forward(x)
        return x

    def inverse(self, x: np.ndarray) -> np.ndarray:
        for step in reversed(self.steps):
            x = step.inverse(x)
        return x


def _scale(std: np.ndarray) -> np.ndarray:
    return np.where(std < CONSTANT, np.float32(1), std + np.float32(EPSILON))


def _float32(x: np.ndarray, dims: int) -> np.ndarray:
    x = np.asarray(x, np.float32)
    if x.ndim == 0 or x.shape[-1] != dims:
        raise ValueError(
            f"expected {dims} dimensions, got an array of shape {list(x.shape)}; "
            "the statistics belong to another robot, or the array is cut"
        )
    return x
