"""Environments by name."""

import difflib
import inspect
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator

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
        ValueError: unknown id or argument, or an environment with other observations.
        ImportError: the simulator is not installed.
    """
    _check_arguments(env_id, kwargs)
    if env_id.startswith(METAWORLD):
        from envs import metaworld

        return metaworld.make(env_id.removeprefix(METAWORLD), **kwargs)
    env = gymnasium.make(env_id, **kwargs)
    space = env.observation_space
    if not isinstance(space, spaces.Dict) or not {STATE, TASK} <= set(space):
        env.close()
        raise ValueError(
            f"{env_id} observes {space}; expected a dict with {STATE!r}, {TASK!r} and pictures as"
            " described in envs/types.py. Wrap it so that it gives these"
        )
    return env


def arguments(env_id: str) -> set[str] | None:
    """Names that `make` takes for this environment; None where it takes any. Raises as `make`."""
    if env_id.startswith(METAWORLD):
        from envs.metaworld import MetaWorld

        creator = MetaWorld
    elif (spec := gymnasium.registry.get(env_id)) is None:
        raise ValueError(_unknown(env_id))
    else:
        entry = spec.entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
        if creator is None:
            return None
    parameters = inspect.signature(creator).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def _check_arguments(env_id: str, kwargs: dict[str, Any]) -> None:
    known = arguments(env_id)
    for name in kwargs:
        if known is not None and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(sorted(known))}"
            raise ValueError(f"{env_id} has no argument {name!r}; {hint}")


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
