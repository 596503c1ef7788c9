"""Whether statistics can be used, and what they are in another implementation's words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from vla.data.stats import FeatureStats, NormStats
from vla.sources.policy_files import PolicyFiles


def check_spread(stats: NormStats, quantiles: bool, source: str | Path) -> None:
    """Raise ValueError, naming feature and dimension, if a spread to divide by is zero."""
    for name, feature in (("state", stats.state), ("action", stats.actions)):
        still = np.flatnonzero(_spread(feature, quantiles, name, source) <= 0)
        if len(still):
            what = "q01 and q99 are equal" if quantiles else "std is 0"
            raise ValueError(
                f"{source}: {what} in {name}[{still[0]}], so that it cannot be normalised "
                f"({len(still)} of {feature.dim} dimensions are so); compute them on data that "
                "moves it, or give others with stats="
            )


def effective_stats(files: PolicyFiles, epsilon: float) -> NormStats:
    """Statistics that give, where `epsilon` is added to a spread, what the policy's own give with
    its own epsilon and with dimensions that it does not scale.

    Unchanged where the policy's epsilon is that one, or none, and every dimension is scaled.
    """
    assert files.stats is not None
    own = 0.0 if files.epsilon is None else files.epsilon
    if files.still == 0 and own in (epsilon, 0):
        return files.stats
    feature = _by_range if files.quantiles else _by_std
    return NormStats(
        *(feature(f, own, files.still, epsilon) for f in (files.stats.state, files.stats.actions))
    )


def _spread(feature: FeatureStats, quantiles: bool, name: str, source: str | Path) -> np.ndarray:
    if not quantiles:
        return feature.std
    if feature.q01 is None or feature.q99 is None:
        raise ValueError(
            f"{source}: the statistics of {name} have no q01 and q99, which π0.5 needs"
        )
    return feature.q99 - feature.q01


def _by_std(stats: FeatureStats, own: float, still: float, epsilon: float) -> FeatureStats:
    scale = np.where(stats.std < still, 1.0, stats.std.astype(np.float64) + own)
    return replace(stats, std=np.maximum(scale - epsilon, 0).astype(np.float32))


def _by_range(stats: FeatureStats, own: float, still: float, epsilon: float) -> FeatureStats:
    assert stats.q01 is not None
    assert stats.q99 is not None
    low, span = stats.q01.astype(np.float64), stats.q99.astype(np.float64) - stats.q01
    moves = span >= still
    low = np.where(moves, low, low - 1)  # `Quantile` centres what does not move on q01
    high = low + np.where(moves, span + own, 2.0) - epsilon
    return replace(stats, q01=low.astype(np.float32), q99=high.astype(np.float32))
