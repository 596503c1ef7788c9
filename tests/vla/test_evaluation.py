"""Evaluation of policies whose success is known beforehand."""

import json
from typing import cast

import numpy as np
import pytest

from envs.experts import ExpertPolicy, RandomPolicy
from envs.make import make
from envs.tabletop.goal import Goal
from envs.tabletop.world import Tabletop
from envs.types import TASK, Episode
from vla.evaluation.evaluate import evaluate, instruction_kind, save_evaluation, write_video

KINDS = {"put": "put on a plate", "push": "push to a side", "stack": "stack on an object"}


def test_the_expert_succeeds_and_chance_does_not():
    expert = evaluate(ExpertPolicy(), "Tabletop-easy-v0", range(12), num_envs=4)
    chance = evaluate(RandomPolicy(3), "Tabletop-easy-v0", range(4), max_steps=30)
    assert (expert.table.total.k, expert.table.total.n) == (12, 12)
    assert [e.seed for e in expert.episodes] == list(range(12))
    assert chance.table.total.k <= 1
    assert chance.table.total.mean_length <= 30


@pytest.mark.parametrize("level", ["Tabletop-easy-v0", "Tabletop-v0"])
def test_the_kind_of_an_instruction_is_that_of_the_goal(level):
    env = make(level, image_size=8)
    world = cast(Tabletop, env.unwrapped)
    for seed in range(150):
        observation, _ = env.reset(seed=seed)
        episode = Episode(level, seed, observation[TASK], True, 1, 1.0)
        assert instruction_kind(episode) == KINDS[cast(Goal, world.goal).kind]
    env.close()


def test_elsewhere_an_instruction_is_its_own_kind():
    assert (
        instruction_kind(Episode("metaworld/reach-v3", 0, "reach it", True, 1, 1.0)) == "reach it"
    )


def test_saving_writes_the_table_every_episode_and_the_recorded_videos(tmp_path):
    evaluation = evaluate(
        ExpertPolicy(), "Tabletop-easy-v0", [3, 4], options={"swap": True}, record=1
    )
    save_evaluation(evaluation, tmp_path / "new" / "folder")
    saved = json.loads((tmp_path / "new/folder/eval.json").read_text())
    assert saved["env"] == "Tabletop-easy-v0"
    assert saved["options"] == {"swap": True}
    assert saved["total"]["n"] == 2
    assert [e["seed"] for e in saved["episodes"]] == [3, 4]
    assert [p.name for p in tmp_path.rglob("*.mp4")] == ["seed-3-success.mp4"]


def test_a_video_shows_all_cameras_side_by_side(tmp_path):
    frames = np.zeros((3, 48, 48, 3), np.uint8)
    episode = Episode("x", 0, "t", True, 2, 1.0, frames={"top": frames, "wrist": frames})
    width, height = write_video(episode, tmp_path / "a.mp4")
    assert width == 2 * height


def test_an_unknown_environment_is_named_with_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'Tabletop-easy-v0'"):
        evaluate(RandomPolicy(3), "tabletop-esy-v0", [0])


def test_no_seeds_are_refused():
    with pytest.raises(ValueError, match="at least one episode"):
        evaluate(RandomPolicy(3), "Tabletop-easy-v0", [])
