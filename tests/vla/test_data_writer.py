"""Writing demonstrations: what is written is what LeRobot reads, or nothing is there."""

import json
import logging

import numpy as np
import pytest
import small_dataset as small

from vla.data.collect import collect
from vla.data.dataset import open_dataset
from vla.data.writer import write_dataset


def test_the_folder_is_a_lerobot_dataset_v3(video_dataset):
    info = json.loads((video_dataset / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"]) == (3, 16)
    assert info["fps"] == small.FPS
    assert info["features"]["observation.images.top"]["dtype"] == "video"
    assert info["features"]["observation.images.wrist"]["shape"] == [24, 32, 3]
    assert info["features"]["observation.state"]["shape"] == [3]
    assert info["features"]["action"]["dtype"] == "float32"


def test_states_actions_tasks_and_seeds_are_kept_exactly(video_dataset):
    dataset = open_dataset(video_dataset)
    demonstrations = small.demonstrations()
    states = [o["observation.state"] for d in demonstrations for o in d.observations]
    assert np.array_equal(dataset.column("observation.state"), np.stack(states))
    actions = np.concatenate([d.actions for d in demonstrations])
    assert np.array_equal(dataset.column("action"), actions)
    assert [dataset.tasks[i] for i in dataset.column("task_index")[[0, 5, 9]]] == list(small.TASKS)
    assert dataset.column("episode_seed").tolist() == [0] * 5 + [1] * 4 + [2] * 7


def test_images_are_lossless_and_videos_nearly(video_dataset, image_dataset):
    for root, most in ((image_dataset, 0.0), (video_dataset, 2.0)):
        dataset = open_dataset(root)
        for episode, demonstration in enumerate(small.demonstrations()):
            truth = np.stack(
                [o["observation.images.wrist"] for o in demonstration.observations]
            ).astype(int)
            frames = dataset.frames("wrist", episode)
            assert frames.shape == truth.shape
            assert frames.dtype == np.uint8
            assert np.abs(frames - truth).mean() <= most


def test_a_part_of_an_episode_is_that_part_of_the_whole(video_dataset, image_dataset):
    for root in (video_dataset, image_dataset):
        dataset = open_dataset(root)
        whole = dataset.frames("top", 2)
        for first in range(7):
            assert np.array_equal(dataset.frames("top", 2, first, 1)[0], whole[first])


def test_a_crash_on_the_way_leaves_nothing(tmp_path):
    def interrupted():
        yield small.demonstration(0, 4)
        assert [p.name for p in tmp_path.iterdir()] != ["data"]  # not under its name yet
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(interrupted(), tmp_path / "data", fps=10)
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_never_overwritten(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    for run in (
        lambda: write_dataset(small.demonstrations(), tmp_path, fps=10),
        lambda: collect("Tabletop-easy-v0", 1, tmp_path),
    ):
        with pytest.raises(FileExistsError, match="exists already; delete it or choose another"):
            run()
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_robots_of_two_kinds_do_not_mix(tmp_path):
    other = small.demonstration(7, 4)
    for observation in other.observations:
        del observation["observation.images.wrist"]
    with pytest.raises(ValueError, match=r"fake seed 7 gives .* write two datasets"):
        write_dataset([small.demonstration(0, 4), other], tmp_path / "data", fps=10)


def test_no_demonstrations_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no demonstrations to write"):
        write_dataset([], tmp_path / "data", fps=10)


def test_collect_keeps_successes_of_several_worlds_in_turn(tmp_path):
    root = collect(
        ["Tabletop-easy-v0", "Tabletop-v0"],
        episodes=3,
        root=tmp_path / "data",
        seed=5,
        image_size=32,
        progress=False,
    )
    dataset = open_dataset(root)
    assert len(dataset.episodes) == 3
    assert dataset.fps == 10
    assert set(dataset.cameras) == {"top", "wrist"}
    assert dataset.frames("top", 1).shape[1:] == (32, 32, 3)
    seeds = dataset.column("episode_seed")[dataset.starts]
    assert seeds[0] >= 5
    assert seeds[1] >= 5
    assert seeds[2] > seeds[0]


def test_an_expert_that_never_succeeds_is_named(tmp_path, monkeypatch):
    def failing(env_id, seeds, **_):
        for seed in seeds:
            demonstration = small.demonstration(seed, 4)
            yield type(demonstration)(**{**vars(demonstration), "success": False})

    monkeypatch.setattr("envs.demonstrations", failing)
    with pytest.raises(ValueError, match="Tabletop-easy-v0 succeeded in 0 of 20 episodes"):
        collect("Tabletop-easy-v0", 1, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


def test_writing_is_silent(tmp_path, capfd):
    write_dataset(small.demonstrations()[:2], tmp_path / "data", fps=10)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert logging.getLogger().level == logging.WARNING
