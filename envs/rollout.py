"""Policies in environments: many episodes at once, one policy call for all that need a plan."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.experts import ExpertPolicy
from envs.make import make
from envs.types import IMAGES, TASK, Episode, Observation, Policy

PARK = "park"


def rollout(
    policy: Policy,
    env_id: str,
    seeds: Sequence[int],
    *,
    num_envs: int = 16,
    replan_every: int | None = None,
    max_steps: int | None = None,
    tasks: Sequence[str] | None = None,
    options: dict[str, Any] | None = None,
    record: int = 0,
    env_kwargs: dict[str, Any] | None = None,
) -> list[Episode]:
    """One episode per seed, in the order of `seeds`.

    The policy is asked for a chunk of actions, the first `replan_every` of them are carried out
    (None: all), then it is asked again. `num_envs` environments run side by side, and an
    environment that finishes goes on with the next seed; an episode is the same whatever their
    number, as long as the policy treats each observation by itself. An episode succeeds by an
    `info["success"]` at any step. An exception in the policy or an environment ends the rollout: it
    is a fault, not a failed episode.

    Args:
        policy: asked through `act_batch`; its `reset` is called once, at the start.
        env_id: see `envs.make`.
        max_steps: ends an episode earlier than the environment would.
        tasks: instructions for the policy instead of the environment's, one per seed.
        options: for every `env.reset`, such as {"swap": True}.
        record: keep the frames of the first so many episodes: all cameras, and what `env.render`
            draws (as "render") if its render mode is "rgb_array".
        env_kwargs: for `envs.make`.

    Raises:
        ValueError: numbers that do not fit together, or chunks of a wrong shape, with values that
            are not finite, or shorter than `replan_every`.
    """
    _check(seeds, num_envs, replan_every, max_steps, tasks)
    if not seeds:
        return []
    makers = [partial(_make, env_id, env_kwargs)] * min(num_envs, len(seeds))
    envs = SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)
    lane = _Lane(policy, env_id, envs, options or {}, replan_every, max_steps, record)
    try:
        policy.reset()
        return lane.drive(seeds, tasks)
    finally:
        envs.close()


@dataclass
class _Run:
    """An episode under way."""

    index: int
    seed: int
    task: str
    plan: deque[np.ndarray] = field(default_factory=deque)
    actions: list[np.ndarray] = field(default_factory=list)
    reward: float = 0.0
    success: bool = False
    original_success: bool | None = None
    latencies: list[float] = field(default_factory=list)
    frames: dict[str, list[np.ndarray]] | None = None


@dataclass
class _Lane:
    """The environments, and what each of them is busy with."""

    policy: Policy
    env_id: str
    envs: SyncVectorEnv
    options: dict[str, Any]
    replan_every: int | None
    max_steps: int | None
    record: int

    def drive(self, seeds: Sequence[int], tasks: Sequence[str] | None) -> list[Episode]:
        waiting = deque(enumerate(seeds))
        runs: list[_Run | None] = [None] * self.envs.num_envs
        episodes: dict[int, Episode] = {}
        free = list(range(self.envs.num_envs))
        while len(episodes) < len(seeds):
            self._refill(runs, free, waiting, tasks)
            self._plan(runs)
            free = self._step(runs)
            for i in free:
                run = runs[i]
                assert run is not None, "only running episodes finish"
                episodes[run.index], runs[i] = self._episode(run), None
        return [episodes[i] for i in range(len(seeds))]

    def _refill(
        self,
        runs: list[_Run | None],
        free: list[int],
        waiting: deque[tuple[int, int]],
        tasks: Sequence[str] | None,
    ) -> None:
        """Start the next seeds in the free environments; park those that none is left for."""
        started = {i: waiting.popleft() for i in free[: len(waiting)]}
        parked = [i for i in free if i not in started]
        if parked:
            self.envs.reset(options={PARK: True, "reset_mask": self._mask(parked)})
        if not started:
            return
        mask = self._mask(list(started))
        seeds = [started[i][1] if i in started else None for i in range(len(runs))]
        _, info = self.envs.reset(seed=seeds, options={**self.options, "reset_mask": mask})
        for i, (index, seed) in started.items():
            task = self._observation(i)[TASK] if tasks is None else tasks[index]
            runs[i] = run = _Run(index, seed, task)
            if index < self.record:
                run.frames = {}
            self._note(run, i, info)

    def _plan(self, runs: list[_Run | None]) -> None:
        """One policy call for all episodes that have run out of actions."""
        asking = [(i, run) for i, run in enumerate(runs) if run is not None and not run.plan]
        if not asking:
            return
        observations = [{**self._observation(i), TASK: run.task} for i, run in asking]
        start = time.perf_counter()
        if isinstance(self.policy, ExpertPolicy):
            chunks = self.policy.act_in([self.envs.envs[i] for i, _ in asking])
        else:
            chunks = self.policy.act_batch(observations)
        seconds = time.perf_counter() - start
        chunks = self._checked(np.asarray(chunks), len(asking))
        for (_, run), chunk in zip(asking, chunks, strict=True):
            run.plan.extend(chunk[: self.replan_every])
            run.latencies.append(seconds)

    def _step(self, runs: list[_Run | None]) -> list[int]:
        """Step all environments; the indices of those whose episode has ended."""
        actions = np.zeros(self.envs.action_space.shape or (), np.float32)
        for i, run in enumerate(runs):
            if run is not None:
                actions[i] = run.plan.popleft()
                run.actions.append(actions[i].copy())
        _, rewards, terminated, truncated, info = self.envs.step(actions)
        free = []
        for i, run in enumerate(runs):
            if run is not None:
                run.reward += float(rewards[i])
                self._note(run, i, info)
                if terminated[i] or truncated[i] or len(run.actions) == self.max_steps:
                    free.append(i)
        return free

    def _note(self, run: _Run, i: int, info: dict[str, Any]) -> None:
        """Keep what environment `i` has just told about its episode."""
        if "success" not in info:
            raise ValueError(
                f'{self.env_id} gives no info["success"]; it is needed to count episodes'
            )
        run.success |= bool(info["success"][i])
        if "original_success" in info:
            run.original_success = bool(info["original_success"][i])
        if run.frames is None:
            return
        pictures = {
            key.removeprefix(IMAGES): value
            for key, value in self._observation(i).items()
            if key.startswith(IMAGES)
        }
        if self.envs.envs[i].render_mode == "rgb_array":
            pictures["render"] = cast(np.ndarray, self.envs.envs[i].render())
        for camera, picture in pictures.items():
            run.frames.setdefault(camera, []).append(picture)

    def _observation(self, i: int) -> Observation:
        """A copy of what environment `i` shows now."""
        batch = cast(dict[str, Any], self.envs._observations)
        return {
            key: value[i].copy() if isinstance(value, np.ndarray) else value[i]
            for key, value in batch.items()
        }

    def _mask(self, chosen: list[int]) -> np.ndarray:
        mask = np.zeros(self.envs.num_envs, bool)
        mask[chosen] = True
        return mask

    def _checked(self, chunks: np.ndarray, count: int) -> np.ndarray:
        shape = cast(spaces.Box, self.envs.single_action_space).shape
        if chunks.ndim != 3 or chunks.shape[0] != count or chunks.shape[2:] != shape:
            raise ValueError(
                f"expected chunks [{count}, horizon, {shape[0]}] for {self.env_id}, got"
                f" {list(chunks.shape)}; check the policy's action width"
            )
        if chunks.shape[1] < max(1, self.replan_every or 1):
            raise ValueError(
                f"the policy plans {chunks.shape[1]} actions but replan_every is"
                f" {self.replan_every}; lower replan_every"
            )
        if not np.isfinite(chunks).all():
            raise ValueError("the policy's actions hold NaN or infinity; check its weights")
        return chunks

    def _episode(self, run: _Run) -> Episode:
        frames = None
        if run.frames is not None:
            frames = {name: np.stack(shots) for name, shots in run.frames.items()}
        return Episode(
            env_id=self.env_id,
            seed=run.seed,
            task=run.task,
            success=run.success,
            length=len(run.actions),
            reward=run.reward,
            latencies=run.latencies,
            original_success=run.original_success,
            actions=np.stack(run.actions),
            frames=frames,
        )


class _Parking(gymnasium.Wrapper):
    """An environment that rests once it is reset with the option "park": its steps cost nothing."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._parked = False
        self._last: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._parked = PARK in (options or {})
        if self._parked:
            return self._last, {}
        self._last, info = self.env.reset(seed=seed, options=options)
        return self._last, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._parked:
            return self._last, 0.0, False, False, {}
        self._last, *rest = self.env.step(action)
        return self._last, *rest  # type: ignore[return-value]


def _make(env_id: str, kwargs: dict[str, Any] | None) -> gymnasium.Env:
    return _Parking(make(env_id, **(kwargs or {})))


def _check(
    seeds: Sequence[int],
    num_envs: int,
    replan_every: int | None,
    max_steps: int | None,
    tasks: Sequence[str] | None,
) -> None:
    for name, value in (
        ("num_envs", num_envs),
        ("replan_every", replan_every),
        ("max_steps", max_steps),
    ):
        if value is not None and value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")
    if tasks is not None and len(tasks) != len(seeds):
        raise ValueError(f"expected one task per seed, {len(seeds)}, got {len(tasks)}")
