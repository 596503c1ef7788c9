"""Scores as values, as table rows and as files."""

import numpy as np
import pytest

from vla.metrics import Score, load_scores, mean_score, save_scores, score_table
from vla.metrics.score import bootstrap


def test_the_bootstrap_of_a_mean_is_close_to_the_normal_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap(values[:, None], lambda sums: sums[:, 0] / 400)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert (low, high) == bootstrap(values[:, None], lambda sums: sums[:, 0] / 400)


def test_shares_have_a_bootstrap_interval_and_rights_have_wilsons():
    assert mean_score("m", [0.5] * 10).interval == (0.5, 0.5)
    assert mean_score("m", [1.0] * 10).interval == pytest.approx((0.7225, 1), abs=1e-4)
    with pytest.raises(ValueError, match="at least one example to compute m from"):
        mean_score("m", [])


def test_scores_come_back_from_their_file(tmp_path):
    scores = (mean_score("accuracy", [1, 0, 1]), Score("mAP", 0.25, 3))
    save_scores(scores, tmp_path / "new" / "scores.json", {"task": "vqav2"})
    assert load_scores(tmp_path / "new" / "scores.json") == scores


def test_the_table_is_in_hundredths():
    table = score_table([Score("CIDEr-D", 1.134, 5000, interval=(1.1, 1.2)), Score("mAP", 0.25, 9)])
    assert table.splitlines() == [
        "metric     × 100    95 % interval        n",
        "CIDEr-D    113.4    110.0 – 120.0     5000",
        "mAP         25.0                –        9",
    ]
