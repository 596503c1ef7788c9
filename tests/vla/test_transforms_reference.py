"""Normalisation as openpi and LeRobot write it, in float64, on wide and on narrow dimensions."""

import numpy as np
import pytest

from vla.data.stats import FeatureStats
from vla.data.transforms import MeanStd, Quantile

MEAN, STD = np.array([1, -2, 0.5, 0]), np.array([2, 1e-3, 3e-5, 40])
LOW, HIGH = np.array([-3, -2.002, 0.49997, -70]), np.array([5, -1.998, 0.50003, 65])
STATS = FeatureStats(MEAN, STD, LOW, HIGH)
ROUNDING = 2e-7 * np.array([8, 4, 1, 300])  # of float32, at the largest number on the way
X = np.random.default_rng(0).normal(size=(5, 4)) * STD + MEAN

OPENPI = {"epsilon": 1e-6, "epsilon_in_inverse": True, "still": 0}
LEROBOT = {"epsilon": 1e-8, "epsilon_in_inverse": False, "still": 0}


@pytest.mark.parametrize(("options", "undone"), [(OPENPI, 1e-6), (LEROBOT, 0)])
def test_mean_and_std(options, undone):
    transform = MeanStd(STATS, **options)
    inside = (X - MEAN) / (STD + options["epsilon"])
    assert transform.forward(X) == pytest.approx(inside, rel=1e-3, abs=4e-3)  # X is float32
    outside = inside * (STD + undone) + MEAN
    assert (np.abs(transform.inverse(inside) - outside) <= ROUNDING).all()


@pytest.mark.parametrize(("options", "undone"), [(OPENPI, 1e-6), (LEROBOT, 0)])
def test_quantiles(options, undone):
    transform = Quantile(STATS, **options)
    inside = 2 * (X - LOW) / (HIGH - LOW + options["epsilon"]) - 1
    assert transform.forward(X) == pytest.approx(inside, rel=1e-3, abs=8e-3)
    outside = (inside + 1) / 2 * (HIGH - LOW + undone) + LOW
    assert (np.abs(transform.inverse(inside) - outside) <= ROUNDING).all()


def test_a_narrow_dimension_is_scaled_only_where_the_weights_were_trained_so():
    narrow = X[:, 2]
    for transform in (MeanStd, Quantile):
        ours, theirs = transform(STATS), transform(STATS, **OPENPI)
        assert np.abs(ours.forward(X)[:, 2]).max() < 1e-3
        assert np.abs(theirs.forward(X)[:, 2]).max() > 0.5
        assert ours.inverse(ours.forward(X))[:, 2] == pytest.approx(narrow, rel=1e-6)
