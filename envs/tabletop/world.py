"""The gymnasium environment of the tabletop."""

import string
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.tabletop.expert import expert_action, expert_chunk
from envs.tabletop.goal import Goal, sample_goal, swapped_goal
from envs.tabletop.instruction import PHRASES, phrase
from envs.tabletop.physics import advance
from envs.tabletop.render import CAMERAS, render
from envs.tabletop.scene import EASY, Level, Scene, sample_scene
from envs.types import IMAGES, STATE, TASK

RENDER_SIZE = 384


class Tabletop(gymnasium.Env):
    """Do with coloured things on a table what the instruction says.

    Observation, a dict:
        observation.images.top: uint8 RGB [image_size, image_size, 3], the whole table.
        observation.images.wrist: the same size, half a table side around the gripper.
        observation.state: float32 [3], gripper x and y in table sides (y grows downwards in the top
            picture) and opening: 1 open, 0.5 closed on an object, 0 closed and empty.
        task: str, the instruction.
    Action: float32 [3] in [-1, 1], clipped: dx and dy in steps of 0.06 table sides, and grip (> 0
        closes, <= 0 opens).
    Reward: 1 in the step that reaches the goal, else 0. The episode terminates there, and is
        truncated after `level.max_steps`.
    Info, at every reset and step: `success`, whether the goal in the instruction holds;
        `original_success`, whether the goal that the seed gives without a swap has ever held.

    A seed fixes scene, goal and words. `reset(seed=s, options={"swap": True})` gives the scene of
    seed s, but the instruction names another of its objects (same kind of goal, same words and
    target where possible). A policy that follows words reaches the new goal; one that only knows
    what such a scene usually asks for reaches the original one.

    Args:
        level: how crowded and forgiving the table is.
        image_size: side of the pictures, pixels.
        render_mode: "rgb_array" lets `render` draw a larger top view.

    Raises:
        ValueError: in `step`, an action of another shape or with a value that is not finite; in
            `reset`, an unknown option.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self, level: Level = EASY, *, image_size: int = 96, render_mode: str | None = None
    ) -> None:
        if image_size < 8:
            raise ValueError(f"expected an image_size of at least 8 pixels, got {image_size}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'expected render_mode None or "rgb_array", got {render_mode!r}')
        self.level, self.image_size, self.render_mode = level, image_size, render_mode
        picture = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                **{IMAGES + camera: picture for camera in CAMERAS},
                STATE: spaces.Box(0, 1, (3,), np.float32),
                TASK: spaces.Text(96, charset=string.ascii_lowercase + " "),
            }
        )
        self.action_space = spaces.Box(-1, 1, (3,), np.float32)
        self.scene: Scene | None = None
        self.goal: Goal | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Lay a new table. `options`: {"swap": bool}, see the class."""
        super().reset(seed=seed)
        unknown = set(options or {}) - {"swap"}
        if unknown:
            raise ValueError(f'unknown reset options {sorted(unknown)}; the only one is "swap"')
        self.scene = sample_scene(self.np_random, self.level)
        self.original_goal = sample_goal(self.scene, self.np_random)
        words = int(self.np_random.integers(len(PHRASES[self.original_goal.kind])))
        self.goal = self.original_goal
        if (options or {}).get("swap", False):
            self.goal = swapped_goal(self.scene, self.original_goal, self.np_random)
        self.task = phrase(self.goal, self.scene, words)
        self._steps = 0
        self._original_success = False
        return self._observation(), self._info(False)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        scene, goal = self._running()
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (3,) or not np.isfinite(action).all():
            raise ValueError(f"expected 3 finite numbers (dx, dy, grip) as an action, got {action}")
        advance(scene, action.tolist())
        self._steps += 1
        success = goal.holds(scene)
        self._original_success |= self.original_goal.holds(scene)
        truncated = not success and self._steps >= self.level.max_steps
        return self._observation(), float(success), success, truncated, self._info(success)

    def expert_action(self) -> np.ndarray:
        """What the scripted expert would do now: float32 [3]."""
        return np.array(expert_action(*self._running()), np.float32)

    def expert_chunk(self, horizon: int) -> np.ndarray:
        """What the scripted expert would do from now on: float32 [horizon, 3]."""
        return expert_chunk(*self._running(), horizon)

    def render(self) -> np.ndarray | None:
        """A larger top view, uint8 RGB [384, 384, 3]; None without a render mode."""
        if self.render_mode is None:
            return None
        return render(self._running()[0], "top", RENDER_SIZE)

    def _running(self) -> tuple[Scene, Goal]:
        if self.scene is None or self.goal is None:
            raise RuntimeError("the table is not laid yet; call reset first")
        return self.scene, self.goal

    def _observation(self) -> dict[str, Any]:
        scene, _ = self._running()
        pictures = {IMAGES + camera: render(scene, camera, self.image_size) for camera in CAMERAS}
        return {**pictures, STATE: scene.state, TASK: self.task}

    def _info(self, success: bool) -> dict[str, Any]:
        return {"success": success, "original_success": self._original_success}
