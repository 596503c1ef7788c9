"""What crosses the border between environments and policies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Observation = dict[str, Any]
"""What a policy sees, under LeRobot's feature names:

    observation.images.<camera>: uint8 RGB [H, W, 3]
    observation.state: float32 [S], robot units
    task: str, the instruction
"""

IMAGES = "observation.images."
STATE = "observation.state"
TASK = "task"


class Policy(Protocol):
    """Turns observations into chunks of actions."""

    def act_batch(self, observations: Sequence[Observation]) -> np.ndarray:
        """One chunk per observation: float32 [N, horizon, action_dim], robot units."""
        ...

    def reset(self) -> None:
        """Forget everything; called once before a rollout."""
        ...


@dataclass(frozen=True)
class Episode:
    """One rolled-out episode.

    task: the instruction that the policy was given; length: steps; reward: their sum; latencies:
    seconds of each policy call that this episode waited for (a call may serve several
    environments); original_success: with the option "swap", whether the goal that the seed would
    have given was ever reached, else None; frames: uint8 RGB [length + 1, H, W, 3] per camera and
    "render" if the environment draws one, or None if not recorded; actions: float32
    [length, action_dim], as executed.
    """

    env_id: str
    seed: int
    task: str
    success: bool
    length: int
    reward: float
    latencies: list[float] = field(default_factory=list)
    original_success: bool | None = None
    actions: np.ndarray | None = None
    frames: dict[str, np.ndarray] | None = None
