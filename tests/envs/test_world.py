from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.tabletop.scene import EASY, STANDARD
from envs.tabletop.world import Tabletop

IDS = pytest.mark.parametrize("env_id", ["Tabletop-easy-v0", "Tabletop-v0"])


def play(env: Any, seed: int, swap: bool = False):
    """The expert's episode: first observation, last info and whether it terminated."""
    observation, info = env.reset(seed=seed, options={"swap": swap})
    done = terminated = False
    while not done:
        _, _, terminated, truncated, info = env.step(env.unwrapped.expert_action())
        done = terminated or truncated
    return observation, info, terminated


@IDS
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasium_finds_no_fault(env_id, render_mode):
    check_env(envs.make(env_id, render_mode=render_mode).unwrapped)


@IDS
def test_the_environment_is_registered_with_gymnasium(env_id):
    env = gymnasium.make(env_id, image_size=48)
    observation, info = env.reset(seed=0)
    assert observation["observation.images.top"].shape == (48, 48, 3)
    assert observation["observation.images.wrist"].shape == (48, 48, 3)
    assert observation["observation.state"].dtype == np.float32
    assert info == {"success": False, "original_success": False}
    assert env.observation_space.contains(observation)


@IDS
def test_a_seed_fixes_scene_goal_and_words(env_id):
    env = envs.make(env_id)
    first = [env.reset(seed=seed)[0] for seed in range(5)]
    second = [env.reset(seed=seed)[0] for seed in range(5)]
    for a, b in zip(first, second, strict=True):
        assert a["task"] == b["task"]
        for key in set(a) - {"task"}:
            np.testing.assert_array_equal(a[key], b[key])
    assert len({observation["task"] for observation in first}) == 5


@IDS
def test_a_swap_keeps_the_scene_and_changes_what_is_asked(env_id):
    env = envs.make(env_id, image_size=48)
    for seed in range(20):
        own, info, terminated = play(env, seed)
        assert terminated
        assert info == {"success": True, "original_success": True}
        swapped, info, terminated = play(env, seed, swap=True)
        assert terminated
        assert info == {"success": True, "original_success": False}
        assert own["task"] != swapped["task"]
        for key in set(own) - {"task"}:
            np.testing.assert_array_equal(own[key], swapped[key])


def test_reaching_the_original_goal_of_a_swap_is_told_but_ends_nothing():
    env = Tabletop(image_size=48)
    env.reset(seed=1, options={"swap": True})
    env.goal, asked = env.original_goal, env.goal
    while True:
        action = env.expert_action()
        env.goal = asked
        _, reward, terminated, _, info = env.step(action)
        assert not terminated
        assert reward == 0
        if info["original_success"]:
            break
        env.goal = env.original_goal
    assert info == {"success": False, "original_success": True}


def test_the_reward_is_one_at_the_goal():
    env = Tabletop(image_size=48)
    env.reset(seed=0)
    rewards, terminated = [], False
    while not terminated:
        _, reward, terminated, _, _ = env.step(env.expert_action())
        rewards.append(reward)
    assert sum(rewards) == rewards[-1] == 1


@pytest.mark.parametrize("level", [EASY, STANDARD])
def test_an_episode_is_truncated_after_the_steps_of_its_level(level):
    env = Tabletop(level, image_size=16)
    env.reset(seed=0)
    ends = [env.step(np.array([0, 0, -1]))[2:4] for _ in range(level.max_steps)]
    assert ends == [(False, False)] * (level.max_steps - 1) + [(False, True)]


def test_actions_out_of_bounds_are_clipped():
    first, second = Tabletop(image_size=48), Tabletop(image_size=48)
    first.reset(seed=0)
    second.reset(seed=0)
    a = first.step(np.array([5, -3, -9], np.float32))[0]
    b = second.step(np.array([1, -1, -1], np.float32))[0]
    np.testing.assert_array_equal(a["observation.state"], b["observation.state"])


@pytest.mark.parametrize("action", [[np.nan, 0, 0], [0, np.inf, 0], [0, 0]])
def test_an_action_that_is_no_three_finite_numbers_is_refused(action):
    env = Tabletop(image_size=48)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected 3 finite numbers"):
        env.step(np.array(action, np.float32))


def test_a_misspelt_option_is_refused():
    with pytest.raises(ValueError, match=r"unknown reset options \['swpa'\]"):
        Tabletop().reset(seed=0, options={"swpa": True})


def test_a_step_before_the_first_reset_is_refused():
    with pytest.raises(RuntimeError, match="call reset first"):
        Tabletop().step(np.zeros(3))


def test_render_draws_a_larger_table():
    env = Tabletop(render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture is not None
    assert picture.shape == (384, 384, 3)
    assert Tabletop().render() is None


def test_unknown_ids_get_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'Tabletop-easy-v0'"):
        envs.make("tabletop-easy-v1")
    with pytest.raises(ValueError, match="did you mean 'metaworld/reach-v3'"):
        envs.make("metaword/reach-v3")


def test_environments_with_other_observations_are_refused():
    with pytest.raises(ValueError, match=r"CartPole-v1 observes Box.*Wrap it"):
        envs.make("CartPole-v1")
