"""Demonstrations and simple policies: scripted experts, with noise to learn recovery from."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.make import make
from envs.types import TASK, Observation


class Scripted(Protocol):
    """An environment that knows what to do next."""

    def expert_action(self) -> np.ndarray:
        """The expert's action for the present true state: float32 [action_dim]."""
        ...


@dataclass(frozen=True)
class Demonstration:
    """One episode of an expert: `actions[t]`, float32 [T, action_dim], is what the expert would do
    at `observations[t]`. Noise is in what was executed, and so in the states visited, not here."""

    env_id: str
    seed: int
    task: str
    observations: list[Observation]
    actions: np.ndarray
    success: bool


def demonstrations(
    env_id: str,
    seeds: Iterable[int],
    *,
    noise: float = 0.2,
    hold: int = 1,
    kicks: float = 0.05,
    max_steps: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
) -> Iterator[Demonstration]:
    """One demonstration per seed, failed ones included (see `success`).

    To every executed action Gaussian noise of `noise` (in action units) is added, drawn anew every
    `hold` steps: where control is fast, noise of single steps averages out. With the probability
    `kicks` a step's action, all but its last number (the gripper), is uniform in the
    action space instead. The stored actions are the expert's own. The seed fixes all of this.
    An episode ends with the environment's, or after `max_steps`.

    Raises ValueError for an environment without a scripted expert.
    """
    env = make(env_id, **(env_kwargs or {}))
    try:
        for seed in seeds:
            yield _demonstrate(env, env_id, seed, noise, hold, kicks, max_steps)
    finally:
        env.close()


def _demonstrate(
    env: gymnasium.Env,
    env_id: str,
    seed: int,
    noise: float,
    hold: int,
    kicks: float,
    max_steps: int | None,
) -> Demonstration:
    rng = np.random.default_rng([seed, 1])  # not the environment's own stream
    space = cast(spaces.Box, env.action_space)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    observation, _ = env.reset(seed=seed)
    observations, actions, success, done = [], [], False, False
    disturbance = np.zeros(space.shape)
    while not done:
        action = scripted_action(env)
        observations.append(observation)
        actions.append(action)
        if len(actions) % hold == 1 % hold:
            disturbance = rng.normal(0, noise, action.shape)
        executed = action + disturbance
        if rng.random() < kicks:
            executed[:-1] = rng.uniform(low[:-1], high[:-1])
        executed = np.clip(executed, low, high).astype(np.float32)
        observation, _, terminated, truncated, info = env.step(executed)
        success = success or bool(info["success"])
        done = terminated or truncated or len(actions) == max_steps
    task = observations[0][TASK]
    return Demonstration(env_id, seed, task, observations, np.stack(actions), success)


def scripted_action(env: gymnasium.Env) -> np.ndarray:
    """The scripted expert's action, float32 [action_dim], clipped to the action space.

    ValueError for an environment that has no `expert_action`.
    """
    world = env.unwrapped
    if not hasattr(world, "expert_action"):
        raise ValueError(
            f"{type(world).__name__} has no scripted expert; give it a method expert_action() that"
            " returns an action for its present state"
        )
    space = cast(spaces.Box, env.action_space)
    action = cast(Scripted, world).expert_action()
    return np.clip(action, space.low, space.high).astype(np.float32)


class ExpertPolicy:
    """The scripted expert as a policy, for `rollout` only: it reads the true state."""

    def reset(self) -> None:
        """Nothing to forget."""

    def act_batch(self, observations: Sequence[Observation]) -> np.ndarray:
        """Always a TypeError: an observation is not enough for this policy."""
        raise TypeError("ExpertPolicy needs the environments; use it with envs.rollout")

    def act_in(self, envs: Sequence[gymnasium.Env]) -> np.ndarray:
        """One action per environment: float32 [N, 1, action_dim]."""
        return np.stack([scripted_action(env)[None] for env in envs])


class RandomPolicy:
    """Uniform actions in [-1, 1]: the score that every policy should beat."""

    def __init__(self, action_dim: int, seed: int = 0) -> None:
        self.action_dim, self.seed = action_dim, seed
        self.reset()

    def reset(self) -> None:
        """Start the random numbers again."""
        self._rng = np.random.default_rng(self.seed)

    def act_batch(self, observations: Sequence[Observation]) -> np.ndarray:
        """One action per observation: float32 [N, 1, action_dim]."""
        return self._rng.uniform(-1, 1, (len(observations), 1, self.action_dim)).astype(np.float32)
