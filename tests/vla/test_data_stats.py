"""Statistics and the transforms made of them."""

import json

import numpy as np
import pytest

from vla.data.dataset import open_dataset
from vla.data.stats import FeatureStats, NormStats, feature_stats, norm_stats
from vla.data.transforms import Compose, MeanStd, PadDims, Quantile


def test_statistics_are_exact():
    stats = feature_stats(np.arange(101.0)[:, None] * [1, -2])
    assert stats.mean.tolist() == [50, -100]
    assert stats.std == pytest.approx(np.sqrt((101**2 - 1) / 12) * np.array([1, 2]))  # population
    assert stats.q01 is not None
    assert stats.q99 is not None
    assert stats.q01.tolist() == [1, -198]
    assert stats.q99.tolist() == [99, -2]
    assert stats.min == pytest.approx([0, -200])
    assert stats.max == pytest.approx([100, 0])
    assert stats.count == 101


def test_statistics_of_a_dataset_need_no_video(video_dataset, tmp_path):
    whole = norm_stats(video_dataset)
    state = open_dataset(video_dataset).column("observation.state")
    assert whole.state.mean == pytest.approx(state.mean(0), abs=1e-6)
    assert (whole.state.count, whole.state.dim, whole.actions.dim) == (16, 3, 2)
    part = norm_stats(video_dataset, episodes=[1])
    assert part.state.mean == pytest.approx(state[5:9].mean(0), abs=1e-6)
    for folder in ("meta", "data"):  # links, as in the Hub's cache
        (tmp_path / folder).symlink_to(video_dataset / folder)
    assert str(norm_stats(tmp_path)) == str(whole)


def test_statistics_equal_lerobots(video_dataset):
    theirs = json.loads((video_dataset / "meta/stats.json").read_text())["action"]
    ours = norm_stats(video_dataset).actions
    for name in ("mean", "std", "min", "max"):
        assert getattr(ours, name) == pytest.approx(np.array(theirs[name]), abs=1e-5)


def test_saving_and_loading_keeps_every_number(tmp_path, video_dataset):
    stats = norm_stats(video_dataset)
    stats.save(tmp_path / "norm_stats.json")
    again = NormStats.load(tmp_path / "norm_stats.json")
    for name in ("mean", "std", "q01", "q99", "min", "max"):
        assert np.array_equal(getattr(again.actions, name), getattr(stats.actions, name))
    assert again.state.count == 16
    assert str(again) == str(stats)


def test_openpis_file_loads(tmp_path):
    feature = {"mean": [1.0, 2.0], "std": [0.5, 0.0], "q01": None, "q99": None}
    text = json.dumps({"norm_stats": {"state": feature, "actions": feature}})
    (tmp_path / "norm_stats.json").write_text(text)
    stats = NormStats.load(tmp_path / "norm_stats.json")
    assert stats.state.mean.tolist() == [1, 2]
    assert stats.actions.q01 is None


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ({"mean": [0.0, float("nan")], "std": [1.0, 1.0]}, r"mean\[1\] is nan"),
        ({"mean": [0.0], "std": [float("inf")]}, r"std\[0\] is inf"),
        ({"mean": [0.0, 1.0], "std": [1.0]}, r"std has shape \[1\] but mean \[2\]"),
        ({"mean": [0.0], "std": [-1.0]}, "std is negative"),
        ({"std": [1.0]}, "mean"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path, stats, message):
    text = json.dumps({"norm_stats": {"state": stats, "actions": stats}})
    (tmp_path / "norm_stats.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        NormStats.load(tmp_path / "norm_stats.json")


def test_missing_statistics_say_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="vla stats DATASET"):
        NormStats.load(tmp_path / "norm_stats.json")


def example() -> FeatureStats:
    return FeatureStats(
        np.array([1, -2, 5]), np.array([2, 0.5, 0]), np.array([-3, -3, 5]), np.array([5, -1, 5])
    )


def test_mean_std_is_openpis_formula():
    out = MeanStd(example()).forward(np.array([3.0, -2.0, 5.0]))
    assert out == pytest.approx([2 / (2 + 1e-6), 0, 0])
    assert out.dtype == np.float32


def test_quantiles_map_to_plus_and_minus_one():
    transform = Quantile(example())
    low = transform.forward(np.array([-3.0, -3.0, 5.0]))
    high = transform.forward(np.array([5.0, -1.0, 5.0]))
    assert low == pytest.approx([-1, -1, 0], abs=1e-5)
    assert high == pytest.approx([1, 1, 0], abs=1e-5)


@pytest.mark.parametrize("transform", [MeanStd(example()), Quantile(example())])
def test_a_dimension_that_never_moved_is_centred_and_not_amplified(transform):
    moved = np.array([1.0, -2.0, 5.25])
    assert transform.forward(moved)[2] == pytest.approx(0.25)
    assert transform.inverse(transform.forward(moved)) == pytest.approx(moved, abs=1e-6)


def test_every_transform_undoes_itself():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, 3)).astype(np.float32)
    kept = x.copy()
    for first in (MeanStd(example()), Quantile(example())):
        chain = Compose((first, PadDims(3, 8)))
        inside = chain.forward(x)
        assert inside.shape == (4, 6, 8)
        assert inside.dtype == np.float32
        assert (inside[..., 3:] == 0).all()
        assert chain.inverse(inside) == pytest.approx(x, abs=1e-5)
    assert np.array_equal(x, kept)


def test_wrong_widths_are_refused():
    with pytest.raises(ValueError, match="expected 3 dimensions, got an array of shape"):
        MeanStd(example()).forward(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="9 dimensions do not fit the model's 8"):
        PadDims(9, 8)


def test_quantiles_are_required_where_they_are_used():
    with pytest.raises(ValueError, match="no q01 and q99"):
        Quantile(FeatureStats(np.zeros(2), np.ones(2)))
