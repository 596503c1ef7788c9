import numpy as np
import pytest

from envs.tabletop.expert import expert_action, expert_chunk
from envs.tabletop.goal import sample_goal
from envs.tabletop.physics import advance
from envs.tabletop.scene import EASY, STANDARD, sample_scene

LEVELS = pytest.mark.parametrize("level", [EASY, STANDARD])


def solved(seed, level, noise=0.0, random_start=False):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, level)
    goal = sample_goal(scene, rng)
    if random_start:
        scene = scene.with_random_gripper(rng, goal.object)
    for _ in range(level.max_steps):
        action = np.array(expert_action(scene, goal)) + rng.normal(0, noise, 3)
        if noise and rng.random() < 0.05:
            action[:2] = rng.uniform(-1, 1, 2)
        advance(scene, action.tolist())
        if goal.holds(scene):
            return True
    return False


@LEVELS
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_expert_reaches_the_goal_on_500_seeds_with_noise_and_kicks(level, noise):
    assert sum(solved(seed, level, noise) for seed in range(500)) >= 495


@LEVELS
def test_the_expert_recovers_from_random_states(level):
    assert sum(solved(seed, level, random_start=True) for seed in range(500)) >= 495


@LEVELS
def test_a_chunk_is_what_the_expert_does_step_by_step(level):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, level)
        goal = sample_goal(scene, rng)
        before = scene.copy()
        chunk = expert_chunk(scene, goal, 25)
        assert scene == before
        assert chunk.dtype == np.float32
        assert abs(chunk).max() <= 1
        for action in chunk:
            assert action.tolist() == pytest.approx(expert_action(scene, goal), abs=1e-6)
            advance(scene, expert_action(scene, goal))


def test_at_the_goal_the_expert_changes_nothing():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, EASY)
        goal = sample_goal(scene, rng)
        for action in expert_chunk(scene, goal, 45):
            advance(scene, action.tolist())
        assert goal.holds(scene)
        before = scene.copy()
        advance(scene, expert_action(scene, goal))
        assert scene == before
