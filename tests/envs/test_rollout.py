from dataclasses import replace

import numpy as np
import pytest

import envs
from envs.experts import scripted_action

EASY = "Tabletop-easy-v0"
SMALL = {"image_size": 16}


class Reader:
    """Deterministic: a chunk computed from everything that an observation holds."""

    def __init__(self, horizon=7):
        self.horizon = horizon
        self.calls: list[int] = []
        self.tasks: list[str] = []

    def reset(self):
        self.calls.clear()
        self.tasks.clear()

    def act_batch(self, observations):
        self.calls.append(len(observations))
        self.tasks += [o["task"] for o in observations]
        return np.stack([self._chunk(o) for o in observations])

    def _chunk(self, o):
        seed = int(o["observation.images.top"].sum()) + int(o["observation.images.wrist"].sum())
        seed += int(1e6 * o["observation.state"].sum()) + sum(map(ord, o["task"]))
        return np.random.default_rng(seed).uniform(-1, 1, (self.horizon, 3)).astype(np.float32)


def without_latencies(episodes):
    return [replace(e, latencies=[], actions=None, frames=None) for e in episodes]


@pytest.mark.parametrize("num_envs", [1, 2, 5, 16])
def test_episodes_do_not_depend_on_how_many_run_side_by_side(num_envs):
    def run(n):
        return envs.rollout(
            Reader(), EASY, range(7), num_envs=n, replan_every=4, max_steps=33, env_kwargs=SMALL
        )

    alone, together = run(3), run(num_envs)
    assert without_latencies(alone) == without_latencies(together)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)


def test_experts_of_different_lengths_keep_their_seeds_when_environments_are_reused():
    def run(n):
        return envs.rollout(envs.ExpertPolicy(), EASY, range(20), num_envs=n, env_kwargs=SMALL)

    episodes = run(4)
    assert without_latencies(episodes) == without_latencies(run(1))
    assert [e.seed for e in episodes] == list(range(20))
    assert all(e.success and e.reward == 1 for e in episodes)
    assert len({e.length for e in episodes}) > 3


def test_one_call_serves_all_environments_that_need_a_plan():
    policy = Reader(horizon=10)
    episodes = envs.rollout(
        policy, EASY, range(6), num_envs=3, replan_every=5, max_steps=20, env_kwargs=SMALL
    )
    assert policy.calls == [3] * 8
    assert [len(e.latencies) for e in episodes] == [4] * 6
    assert [e.length for e in episodes] == [20] * 6


def test_the_first_actions_of_each_chunk_are_carried_out_in_order():
    class Counter(Reader):
        def _chunk(self, o):
            return np.linspace(0, 0.9, 10, dtype=np.float32)[:, None].repeat(3, 1)

    episode = envs.rollout(Counter(), EASY, [0], replan_every=4, max_steps=8, env_kwargs=SMALL)[0]
    assert episode.actions is not None
    np.testing.assert_allclose(episode.actions[:, 0], [0, 0.1, 0.2, 0.3] * 2, rtol=1e-6)


def test_instructions_can_be_replaced():
    policy = Reader()
    episodes = envs.rollout(
        policy, EASY, [0, 1], max_steps=5, tasks=["dance", "sing"], env_kwargs=SMALL
    )
    assert policy.tasks == ["dance", "sing"]
    assert [e.task for e in episodes] == ["dance", "sing"]


def test_options_reach_every_reset():
    swapped = envs.rollout(
        envs.ExpertPolicy(), EASY, range(6), num_envs=2, options={"swap": True}, env_kwargs=SMALL
    )
    own = envs.rollout(envs.ExpertPolicy(), EASY, range(6), num_envs=2, env_kwargs=SMALL)
    assert all(e.success and not e.original_success for e in swapped)
    assert all(e.success and e.original_success for e in own)
    assert all(a.task != b.task for a, b in zip(own, swapped, strict=True))


def test_only_the_first_episodes_are_recorded():
    episodes = envs.rollout(
        envs.ExpertPolicy(),
        EASY,
        range(4),
        num_envs=2,
        record=3,
        env_kwargs={**SMALL, "render_mode": "rgb_array"},
    )
    for e in episodes[:3]:
        assert e.frames is not None
        assert {k: v.shape for k, v in e.frames.items()} == {
            "top": (e.length + 1, 16, 16, 3),
            "wrist": (e.length + 1, 16, 16, 3),
            "render": (e.length + 1, 384, 384, 3),
        }
    assert episodes[3].frames is None


def test_recorded_frames_are_what_the_environment_showed():
    episode = envs.rollout(envs.ExpertPolicy(), EASY, [3], record=1, env_kwargs=SMALL)[0]
    assert episode.actions is not None
    assert episode.frames is not None
    env = envs.make(EASY, **SMALL)
    shown = [env.reset(seed=3)[0]]
    shown += [env.step(action)[0] for action in episode.actions]
    for camera in ("top", "wrist"):
        expected = np.stack([o[f"observation.images.{camera}"] for o in shown])
        np.testing.assert_array_equal(episode.frames[camera], expected)


def test_a_crash_of_the_policy_is_a_crash():
    class Broken(Reader):
        def act_batch(self, observations):
            raise ZeroDivisionError("broken")

    with pytest.raises(ZeroDivisionError, match="broken"):
        envs.rollout(Broken(), EASY, [0], env_kwargs=SMALL)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros((1, 4, 2), np.float32), r"expected chunks \[1, horizon, 3\].*got \[1, 4, 2\]"),
        (np.zeros((1, 4, 3), np.float32), "plans 4 actions but replan_every is 5"),
        (np.full((1, 9, 3), np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_faulty_chunks_are_refused(chunk, message):
    class Faulty(Reader):
        def act_batch(self, observations):
            return chunk

    with pytest.raises(ValueError, match=message):
        envs.rollout(Faulty(), EASY, [0], replan_every=5, env_kwargs=SMALL)


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_envs of at least 1, got 0"):
        envs.rollout(Reader(), EASY, [0], num_envs=0)
    with pytest.raises(ValueError, match="one task per seed, 2, got 1"):
        envs.rollout(Reader(), EASY, [0, 1], tasks=["a"])
    assert envs.rollout(Reader(), EASY, []) == []


def test_random_actions_hardly_ever_succeed_and_repeat_with_their_seed():
    policy = envs.RandomPolicy(action_dim=3)
    first = envs.rollout(policy, EASY, range(10), env_kwargs=SMALL)
    assert sum(e.success for e in first) <= 1
    again = envs.rollout(policy, EASY, range(10), env_kwargs=SMALL)
    assert without_latencies(first) == without_latencies(again)


def test_demonstrations_hold_clean_actions_for_noisy_states():
    clean = list(envs.demonstrations(EASY, range(5), noise=0, kicks=0, env_kwargs=SMALL))
    noisy = list(envs.demonstrations(EASY, range(5), env_kwargs=SMALL))
    again = list(envs.demonstrations(EASY, range(5), env_kwargs=SMALL))
    for a, b, c in zip(clean, noisy, again, strict=True):
        assert a.success
        assert b.success
        assert a.task == b.task == b.observations[0]["task"]
        assert len(b.observations) == len(b.actions)
        assert set(np.unique(b.actions[:, 2])) == {-1, 1}
        np.testing.assert_array_equal(a.actions[0], b.actions[0])
        np.testing.assert_array_equal(b.actions, c.actions)
    assert any(
        (a.observations[1]["observation.state"] != b.observations[1]["observation.state"]).any()
        for a, b in zip(clean, noisy, strict=True)
    )


def test_an_environment_without_an_expert_says_so():
    class Mute:
        unwrapped = property(lambda self: self)

    with pytest.raises(ValueError, match="Mute has no scripted expert"):
        scripted_action(Mute())  # type: ignore[arg-type]
