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
STILL = 1e-4  # a narrower spread than this, in the feature's unit, is no motion


class Transform(Protocol):
    def forward(self, x: np.ndarray) -> np.ndarray: ...

    def inverse(self, x: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class MeanStd:
    """(x − mean) / (std + epsilon), as openpi's and LeRobot's π0.

    epsilon: openpi has 1e-6, LeRobot 1e-8. epsilon_in_inverse: the way back multiplies by std +
    epsilon, as openpi does; else by std alone, as LeRobot does.
    still: a dimension whose std is below this, in the feature's unit, did not move in the
    demonstrations; it is centred and not scaled. openpi and LeRobot scale every dimension, which
    multiplies the smallest deviation by up to a million; 0 does the same.
    """

    stats: FeatureStats
    epsilon: float = EPSILON
    epsilon_in_inverse: bool = True
    still: float = STILL

    def forward(self, x: np.ndarray) -> np.ndarray:
        return (_float32(x, self.stats.dim) - self.stats.mean) / self._scale(self.epsilon)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        scale = self._scale(self.epsilon if self.epsilon_in_inverse else 0)
        return _float32(x, self.stats.dim) * scale + self.stats.mean

    def _scale(self, epsilon: float) -> np.ndarray:
        std = self.stats.std
        return np.where(std < self.still, np.float32(1), std + np.float32(epsilon))


@dataclass(frozen=True)
class Quantile:
    """2 (x − q01) / (q99 − q01 + epsilon) − 1, as openpi's and LeRobot's π0.5.

    epsilon, epsilon_in_inverse: as in `MeanStd`; LeRobot leaves the epsilon out both ways, and 1e-8
    is nothing beside a range of 1e-4 or more in float32.
    still: as in `MeanStd`, of q99 − q01; a dimension that did not move is centred on q01.
    Most values fall in [-1, 1]; none is clipped.
    Raises ValueError if the statistics have no quantiles.
    """

    stats: FeatureStats
    epsilon: float = EPSILON
    epsilon_in_inverse: bool = True
    still: float = STILL

    def __post_init__(self):
        if self.stats.q01 is None or self.stats.q99 is None:
            raise ValueError(
                "the statistics have no q01 and q99; compute them again, or use MeanStd"
            )

    def forward(self, x: np.ndarray) -> np.ndarray:
        low, half = self._range(self.epsilon)
        return (_float32(x, self.stats.dim) - low) / half - np.float32(1)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        low, half = self._range(self.epsilon if self.epsilon_in_inverse else 0)
        return (_float32(x, self.stats.dim) + np.float32(1)) * half + low

    def _range(self, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.stats.q01, self.stats.q99
        assert low is not None
        assert high is not None
        moves = high - low >= self.still
        half = np.where(moves, (high - low + np.float32(epsilon)) / 2, np.float32(1))
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


def _float32(x: np.ndarray, dims: int) -> np.ndarray:
    x = np.asarray(x, np.float32)
    if x.ndim == 0 or x.shape[-1] != dims:
        raise ValueError(
            f"expected {dims} dimensions, got an array of shape {list(x.shape)}; "
            "the statistics belong to another robot, or the array is cut"
        )
    return x
