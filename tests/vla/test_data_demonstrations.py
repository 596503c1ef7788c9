"""Demonstrations against LeRobot's own reader, and the split."""

from typing import Any

import numpy as np
import pytest
import small_dataset as small

from backbone.image import prepare
from vla.data.demonstrations import Demonstrations, split
from vla.data.writer import write_dataset

HORIZON = 4


@pytest.fixture(scope="module", params=["video_dataset", "image_dataset"])
def root(request):
    return request.getfixturevalue(request.param)


def opened(root, **changes):
    return Demonstrations(root, HORIZON, image_size=32, progress=False, **changes)


def test_items_are_lerobots_own(root):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    chunk = {"action": [i / small.FPS for i in range(HORIZON)]}
    theirs = LeRobotDataset(
        "local/x", root=root, delta_timestamps=chunk, video_backend="pyav", return_uint8=True
    )
    ours = opened(root)
    assert len(ours) == len(theirs) == 16
    for i in range(len(ours)):
        a: Any = ours[i]
        b: Any = theirs[i]
        assert np.array_equal(a["state"], b["observation.state"].numpy())
        assert np.array_equal(a["actions"], b["action"].numpy())
        assert np.array_equal(a["action_valid"], ~b["action_is_pad"].numpy())
        assert (a["task"], a["episode"], a["frame"]) == (
            b["task"],
            b["episode_index"].item(),
            b["frame_index"].item(),
        )
        for camera in ("top", "wrist"):
            picture = b[f"observation.images.{camera}"]
            if picture.is_floating_point():
                picture = (picture * 255).round().byte()
            picture = picture.permute(1, 2, 0).numpy()
            assert np.array_equal(a["images"][camera], prepare(picture, 32))


def test_reading_lazily_gives_the_same_items(root):
    cached, lazy = opened(root), opened(root, cache=False)
    for i in (0, 4, 5, 15):
        for camera in cached.cameras:
            assert np.array_equal(cached[i]["images"][camera], lazy[i]["images"][camera])


def test_the_last_action_is_repeated_and_not_valid(video_dataset):
    item = opened(video_dataset)[3]  # frame 3 of the 5 of episode 0
    truth = small.demonstrations()[0].actions
    assert np.array_equal(item["actions"], truth[[3, 4, 4, 4]])
    assert item["action_valid"].tolist() == [True, True, False, False]


def test_shapes_and_types_are_those_promised(video_dataset):
    demonstrations = opened(video_dataset, cameras=["wrist"])
    assert (demonstrations.state_dim, demonstrations.action_dim, demonstrations.fps) == (3, 2, 10)
    assert demonstrations.tasks == ["push the red cube", "open the drawer"]
    item = demonstrations[-1]
    assert list(item["images"]) == ["wrist"]
    assert item["images"]["wrist"].shape == (32, 32, 3)
    assert item["state"].dtype == item["actions"].dtype == np.float32
    assert (item["episode"], item["frame"]) == (2, 6)
    with pytest.raises(IndexError):
        demonstrations[16]


def test_chosen_episodes_are_the_only_ones_read(video_dataset):
    some = opened(video_dataset, episodes=[2, 0])
    assert len(some) == 7 + 5
    assert (some[0]["episode"], some[7]["episode"]) == (2, 0)
    everything = opened(video_dataset)
    assert np.array_equal(some[0]["images"]["top"], everything[9]["images"]["top"])
    assert np.array_equal(some[6]["actions"], everything[15]["actions"])


def test_other_cameras_sizes_and_dimensions_work(tmp_path):
    demonstration = small.demonstration(3, 6)
    for t, observation in enumerate(demonstration.observations):
        del observation["observation.images.top"]
        observation["observation.images.left_arm"] = np.full((16, 20, 3), 20 * t, np.uint8)
        observation["observation.state"] = np.arange(14, dtype=np.float32)
    write_dataset([demonstration], tmp_path / "data", fps=30)
    demonstrations = Demonstrations(
        tmp_path / "data", 2, cameras=["left_arm", "wrist"], image_size=20, progress=False
    )
    assert demonstrations.state_dim == 14
    assert demonstrations[5]["images"]["left_arm"][10, 10].tolist() == pytest.approx(
        [100] * 3, abs=2
    )


def test_an_episode_shorter_than_the_horizon_is_named(video_dataset):
    message = r"horizon 5 is longer than episode 1 of .*, which has 4 frames; set horizon=4 or less"
    with pytest.raises(ValueError, match=message):
        Demonstrations(video_dataset, 5)
    Demonstrations(video_dataset, 5, episodes=[0, 2], cache=False)
    short = Demonstrations(video_dataset, 5, allow_short_episodes=True, progress=False)
    assert short[5]["action_valid"].tolist() == [True] * 4 + [False]


def test_a_camera_that_is_not_there_is_named_with_those_that_are(video_dataset):
    with pytest.raises(ValueError, match=r"no camera wrst; it has top, wrist; did you mean wrist"):
        Demonstrations(video_dataset, 4, cameras=["wrst"])


def test_a_camera_twice_is_refused(video_dataset):
    with pytest.raises(ValueError, match="name each of at least one camera once"):
        Demonstrations(video_dataset, 4, cameras=["top", "top"])


def test_an_episode_that_is_not_there_is_named(video_dataset):
    with pytest.raises(ValueError, match="has episodes 0 to 2; it has no 3"):
        Demonstrations(video_dataset, 4, episodes=[0, 3])


def test_a_cache_beyond_the_budget_is_refused_before_it_is_made(video_dataset):
    with pytest.raises(ValueError, match=r"caching 16 frames of 2 cameras at 224 px takes 0.00482"):
        Demonstrations(video_dataset, 4, cache_gb=0.001)


def test_a_horizon_of_nothing_is_refused(video_dataset):
    with pytest.raises(ValueError, match="horizon is 0"):
        Demonstrations(video_dataset, 0)


def test_the_split_is_by_episode_disjoint_and_repeatable():
    train, held = split(40, 0.1, seed=3)
    assert len(held) == 4
    assert sorted(train + held) == list(range(40))
    assert split(40, 0.1, seed=3) == (train, held)
    assert split(40, 0.1, seed=4) != (train, held)
    assert split(5, 0.0) == ([0, 1, 2, 3, 4], [])
    assert len(split(3, 0.01)[1]) == 1


def test_holding_everything_out_is_refused():
    with pytest.raises(ValueError, match="leaves none to train on"):
        split(1, 0.5)
    with pytest.raises(ValueError, match=r"share in \[0, 1\)"):
        split(10, 1.0)
