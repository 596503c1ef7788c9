"""MetaWorld: seeds, pictures, actions, experts and messages. Most tests draw no picture."""

import importlib.util
import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import metaworld

STILL = np.zeros(4, np.float32)


@pytest.fixture
def make():
    opened = []

    def open_one(task: str, **kwargs) -> metaworld.MetaWorld:
        opened.append(metaworld.make(task, **kwargs))
        return opened[-1]

    yield open_one
    for env in opened:
        env.close()


def corner2(observation) -> np.ndarray:
    return observation["observation.images.corner2"].astype(int)


def gripper(observation) -> np.ndarray:
    return observation["observation.images.gripper"].astype(int)


def hold(env, action, steps: int):
    """What `env.step` returns after the last of `steps` equal steps."""
    for _ in range(steps - 1):
        env.step(action)
    return env.step(action)


def green(picture: np.ndarray) -> np.ndarray:
    """Where a picture is green, as the drawer is: bool [H, W]."""
    return picture[..., 1] > picture[..., [0, 2]].max(-1) + 20


def red(picture: np.ndarray) -> np.ndarray:
    """Where a picture is bright red, as the goal of reach and the fingertips are: bool [H, W]."""
    return (picture[..., 0] > 150) & (picture[..., 1:].max(-1) < 70)


def test_every_upstream_task_has_its_own_instruction():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(metaworld.INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS)
    assert len(set(metaworld.INSTRUCTIONS.values())) == 50


def test_every_task_resets_and_steps_with_its_expert():
    for task, instruction in metaworld.INSTRUCTIONS.items():
        env = metaworld.make(task, cameras=())
        observation, info = env.reset(seed=0)
        assert observation in env.observation_space, task
        assert observation["task"] == instruction
        assert info == {"success": False}
        observation, reward, terminated, truncated, info = env.step(env.expert_action())
        assert observation in env.observation_space, task
        assert 0 <= reward <= 10, task
        assert (terminated, truncated, info) == (False, False, {"success": False}), task
        env.close()


def test_gymnasium_checker_passes(make):
    check_env(make("push-v3", image_size=32), skip_render_check=True)


def test_a_seed_fixes_the_episode_whatever_ran_before(make):
    def episode(env):
        state = [env.reset(seed=7)[0]["observation.state"]]
        for _ in range(40):
            state.append(env.step(env.expert_action())[0]["observation.state"])
        return np.array(state), env._full_state

    fresh, used = make("drawer-open-v3", cameras=()), make("drawer-open-v3", cameras=())
    used.reset(seed=1)
    for _ in range(50):
        used.step(used.expert_action())
    used.reset()
    for mine, other in zip(episode(fresh), episode(used), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_seeds_cover_the_upstream_range_of_placements(make):
    env = make("reach-v3", cameras=())
    goals = []
    for seed in range(60):
        env.reset(seed=seed)
        goals.append(env._full_state[-3:])
    low, high = np.array([-0.1, 0.8, 0.05]), np.array([0.1, 0.9, 0.3])  # m, sawyer_reach_v3.py
    share = (np.array(goals) - low) / (high - low)
    assert (share >= 0).all()
    assert (share <= 1).all()
    np.testing.assert_allclose(share.min(0), 0, atol=0.1)
    np.testing.assert_allclose(share.max(0), 1, atol=0.1)
    np.testing.assert_allclose(share.mean(0), 0.5, atol=0.1)


def test_reset_without_a_seed_goes_on_from_the_last_one(make):
    env = make("reach-v3", cameras=())

    def goals():
        return [env.reset(seed=seed) and env._full_state[-3:] for seed in (5, None, None)]

    first, again = goals(), goals()
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first, axis=0)) == 3


def test_state_is_the_hand_in_metres_and_the_gripper_opening(make):
    env = make("reach-v3", cameras=())
    start = env.reset(seed=0)[0]["observation.state"]
    np.testing.assert_allclose(start, [0.0, 0.6, 0.2, 1.0], atol=0.01)
    assert start.dtype == np.float32
    state = hold(env, np.array([1, 0, 0, 1]), 20)[0]["observation.state"]
    assert state[0] > start[0] + 0.1  # +x
    assert state[3] < 0.6  # closed


def test_actions_are_clipped(make):
    env = make("reach-v3", cameras=())
    states = []
    for scale in (1, 30):
        env.reset(seed=0)
        states.append([env.step(scale * np.array([1, -1, 1, 1]))[0]["observation.state"]])
    np.testing.assert_array_equal(states[0], states[1])


@pytest.mark.parametrize(
    "action", [[0, np.nan, 0, 0], [np.inf, 0, 0, 0], [0, 0, 0], np.zeros((1, 4))]
)
def test_an_action_that_is_not_four_finite_numbers_is_an_error(make, action):
    env = make("reach-v3", cameras=())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="reach-v3: expected 4 finite numbers as action"):
        env.step(action)


@pytest.mark.parametrize("task", ["reach-v3", "button-press-topdown-v3", "drawer-open-v3"])
def test_the_expert_succeeds_and_ends_the_episode(make, task):
    env = make(task, cameras=(), max_steps=150)
    for seed in range(5):
        _, info = env.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            assert not info["success"]
            action = env.expert_action()
            assert action in env.action_space
            _, _, terminated, truncated, info = env.step(action)
        assert terminated
        assert info["success"]


def test_an_episode_without_success_is_truncated_at_the_limit(make):
    env = make("reach-v3", cameras=(), max_steps=4)
    env.reset(seed=0)
    ends = [env.step(STILL)[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]


def test_corner2_is_upright_with_the_robot_left_and_the_goal_right_of_the_hand(make):
    env = make("reach-v3", image_size=96)
    picture = corner2(env.reset(seed=0)[0])
    wooden = (picture[..., 0] > picture[..., 2] + 15) & (picture[..., 1] > 60)
    assert wooden[80:].sum() > 5 * wooden[:16].sum()  # the table is below
    robot = (picture[..., 0] > 60) & (picture[..., 1:].max(-1) < 40)
    assert robot[:, :48].sum() > 5 * robot[:, 72:].sum()


def test_corner2_shows_the_goal_of_reach_where_it_is(make):
    env = make("reach-v3", image_size=96)
    columns, rows, heights = [], [], []
    for seed in range(6):
        y, x = np.nonzero(red(corner2(env.reset(seed=seed)[0])))
        right = x > 58  # of the fingertips
        assert right.sum() >= 4
        columns.append(x[right].mean())
        rows.append(y[right].mean())
        heights.append(env._full_state[-1])
    assert np.corrcoef(rows, heights)[0, 1] < -0.9  # higher is further up
    assert np.ptp(columns) > 2


def test_the_first_picture_shows_where_things_are(make):
    """Upstream's reset leaves the open window drawn 20 cm away from where it is."""
    env = make("window-close-v3", image_size=48)
    first = corner2(env.reset(seed=1)[0])
    second = corner2(env.step(STILL)[0])
    assert np.abs(first - second)[:, 24:].mean() < 1


def test_the_gripper_picture_moves_with_the_hand(make):
    env = make("drawer-open-v3", image_size=64)
    start = gripper(env.reset(seed=0)[0])
    assert green(start)[:12].sum() > 100  # the drawer, away from the robot, is above
    moved = gripper(hold(env, np.array([0, -1, 0, -1]), 15)[0])  # back towards the robot
    assert green(moved)[:12].sum() < 20
    cyan = [0, 180, 180]
    for picture in (start, moved):  # the finger stays where it is
        np.testing.assert_allclose(picture[8:14, 2:8], np.broadcast_to(cyan, (6, 6, 3)), atol=40)


def test_zoom_crops_around_the_workspace(make):
    observe = {"cameras": ("corner2",)}
    full = corner2(make("drawer-open-v3", image_size=192, **observe).reset(seed=0)[0])
    zoomed = corner2(make("drawer-open-v3", image_size=96, zoom=2, **observe).reset(seed=0)[0])
    left, top = round(0.6 * 192 - 48), round(0.52 * 192 - 48)
    assert np.abs(full[top : top + 96, left : left + 96] - zoomed).mean() < 4


def test_render_is_the_corner2_view_at_video_size(make):
    env = make("drawer-open-v3", image_size=80)
    picture = corner2(env.reset(seed=0)[0])
    video = env.render()
    assert (video.shape, video.dtype) == ((320, 320, 3), np.uint8)
    coarse = video.reshape(80, 4, 80, 4, 3).mean((1, 3))
    assert np.abs(coarse - picture).mean() < 3


def test_environments_of_one_process_keep_their_pictures_apart(make):
    tasks = ["reach-v3", "drawer-open-v3", "button-press-topdown-v3"]
    vector = gymnasium.vector.SyncVectorEnv(
        [lambda task=task: metaworld.make(task, image_size=48) for task in tasks]
    )
    vector.reset(seed=[0, 1, 2])
    together, *_, info = hold(vector, np.zeros((3, 4), np.float32), 3)
    assert not info["success"].any()
    for i, task in enumerate(tasks):
        env = make(task, image_size=48)
        env.reset(seed=i)
        alone, *_ = hold(env, STILL, 3)
        for camera in metaworld.CAMERAS:
            name = f"observation.images.{camera}"
            np.testing.assert_array_equal(together[name][i], alone[name])
        assert together["task"][i] == metaworld.INSTRUCTIONS[task]
    vector.close()


def test_a_picture_after_close_is_drawn_anew(make):
    env = make("reach-v3", image_size=32)
    before = corner2(env.reset(seed=0)[0])
    env.close()
    np.testing.assert_array_equal(corner2(env.reset(seed=0)[0]), before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task": "reach-v2"}, "unknown MetaWorld task 'reach-v2'; did you mean 'reach-v3'"),
        ({"cameras": ("griper",)}, "unknown camera 'griper'; did you mean 'gripper'"),
        ({"image_size": 0}, "image_size must be from 8 to 1024, got 0"),
        ({"zoom": 0.5}, "zoom must be from 1 to 8, got 0.5"),
        ({"max_steps": 501}, "max_steps must be from 1 to 500, got 501"),
    ],
)
def test_a_bad_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        metaworld.make(**({"task": "reach-v3"} | kwargs))


def test_without_metaworld_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install vla\[sim\]"):
        metaworld.make("reach-v3")


def picture_in_a_new_process(**environment: str) -> subprocess.CompletedProcess:
    code = (
        "import os\nfrom envs import metaworld\n"
        "env = metaworld.make('reach-v3', cameras=('corner2',), image_size=16)\n"
        "observation, _ = env.reset(seed=0)\n"
        "print(os.environ['MUJOCO_GL'], observation['observation.images.corner2'].std() > 10)\n"
    )
    inherited = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_an_egl_driver_osmesa_draws():
    result = picture_in_a_new_process(__EGL_VENDOR_LIBRARY_DIRS="/nonexistent")
    assert result.stdout == "osmesa True\n", result.stderr


def test_no_working_opengl_is_a_clear_error():
    result = picture_in_a_new_process(MUJOCO_GL="egl", __EGL_VENDOR_LIBRARY_DIRS="/nonexistent")
    assert "RuntimeError: no OpenGL with MUJOCO_GL=egl" in result.stderr
    assert "install libegl1 (egl) or libosmesa6 (osmesa)" in result.stderr


def test_pictures_with_opengl_disabled_are_a_clear_error():
    result = picture_in_a_new_process(MUJOCO_GL="disable")
    assert "RuntimeError: no OpenGL with MUJOCO_GL=disable: pictures need one of" in result.stderr
