"""Environments by name."""

import difflib
from typing import Any

import gymnasium
from gymnasium import spaces

from envs.tabletop.scene import EASY, STANDARD
from envs.types import STATE, TASK

METAWORLD = "metaworld/"
TABLETOP = {"Tabletop-easy-v0": EASY, "Tabletop-v0": STANDARD}

for _id, _level in TABLETOP.items():
    gymnasium.register(_id, "envs.tabletop.world:Tabletop", kwargs={"level": _level})


def make(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """The environment called `env_id`, e.g. `make("Tabletop-easy-v0", image_size=48)`.

    Known are "Tabletop-easy-v0", "Tabletop-v0", "metaworld/<task>" such as "metaworld/reach-v3",
    and every id registered with gymnasium whose observations are those of `envs.types`. `kwargs` go
    to the environment.

    Raises:
        ValueError: unknown id, or an environment with other observations.
        ImportError: the simulator is not installed.
    """
    if env_id.startswith(METAWORLD):
        from envs import metaworld

        return metaworld.make(env_id.removeprefix(METAWORLD), **kwargs)
    if env_id not in gymnasium.registry:
        raise ValueError(_unknown(env_id))
    env = gymnasium.make(env_id, **kwargs)
    space = env.observation_space
    if not isinstance(space, spaces.Dict) or not {STATE, TASK} <= set(space):
        env.close()
        raise ValueError(
            f"{env_id} observes {space}; expected a dict with {STATE!r}, {TASK!r} and pictures as"
            " described in envs/types.py. Wrap it so that it gives these"
        )
    return env


def _unknown(env_id: str) -> str:
    from envs.metaworld import INSTRUCTIONS

    known = [*TABLETOP, *(METAWORLD + task for task in INSTRUCTIONS)]
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(env_id.lower(), lower, n=1)
    hint = f"did you mean {lower[close[0]]!r}? " if close else ""
    return (
        f"unknown environment {env_id!r}; {hint}There are {', '.join(TABLETOP)}, metaworld/<task>"
        " (e.g. metaworld/reach-v3) and what is registered with gymnasium"
    )
