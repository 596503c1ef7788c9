"""What is asked for: three kinds of goals, when they hold, and which of them a scene allows."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from envs.tabletop.scene import HOLDING, STEP, TIP_RADIUS, Scene

Kind = Literal["put", "push", "stack"]
MIX: dict[Kind, float] = {"put": 0.6, "push": 0.2, "stack": 0.2}
SIDES: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
}


@dataclass(frozen=True)
class Goal:
    """Bring item `object` to `target`: a plate ("put") or an object ("stack") by its index in the
    scene, or the name of a side ("push")."""

    kind: Kind
    object: int
    target: int | str

    def holds(self, scene: Scene) -> bool:
        """Whether the true state fulfils the goal.

        put, stack: the object rests directly on the target and the gripper is open. push: the
        object's centre is in the strip along the side, whatever the gripper does.
        """
        if isinstance(self.target, str):
            return distance_to_side(scene, self.object, self.target) <= scene.level.strip
        return scene.on[self.object] == self.target and scene.opening > HOLDING


def distance_to_side(scene: Scene, index: int, side: str) -> float:
    """How far the centre of item `index` is from the table's edge at `side`."""
    x, y = scene.position[index]
    return {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[side]


def contact_distance(scene: Scene) -> float:
    """Distance of gripper and object centre at which a closed gripper touches the object."""
    return scene.level.object_radius + TIP_RADIUS


def feasible_goals(scene: Scene, kind: Kind) -> list[Goal]:
    """All goals of a kind that can be reached from `scene` and do not hold in it already."""
    if kind == "put":
        goals = [Goal(kind, i, j) for i in scene.objects for j in scene.plates]
    elif kind == "stack":
        goals = [Goal(kind, i, j) for i in scene.objects for j in scene.objects if i != j]
    else:
        goals = [
            Goal(kind, i, side) for i in scene.objects for side in SIDES if can_push(scene, i, side)
        ]
    return [goal for goal in goals if not goal.holds(scene)]


def can_push(scene: Scene, index: int, side: str) -> bool:
    """Whether a straight push of object `index` to `side` has room behind it and a free way."""
    ux, uy = SIDES[side]
    x, y = scene.position[index]
    radius = scene.level.object_radius
    behind = contact_distance(scene) + 0.01
    if not (0 <= x - ux * behind <= 1 and 0 <= y - uy * behind <= 1):
        return False
    way = distance_to_side(scene, index, side) - scene.level.strip
    if way < STEP:
        return False  # hardly outside of the strip: not worth a push
    for other in scene.objects:
        if other == index:
            continue
        dx, dy = scene.position[other][0] - x, scene.position[other][1] - y
        along, across = dx * ux + dy * uy, abs(dx * uy - dy * ux)
        if 0 < along < way + STEP + 2 * radius and across < 2 * radius + 0.01:
            return False
    return True


def sample_goal(scene: Scene, rng: np.random.Generator) -> Goal:
    """A random feasible goal: about 60 % put, 20 % push, 20 % stack.

    Where the scene has several objects, only kinds are drawn that at least two of them could be
    asked for, so that the words and not the scene decide. ValueError if nothing is feasible.
    """
    kinds = list(MIX)
    order = rng.choice(len(kinds), size=len(kinds), replace=False, p=list(MIX.values()))
    for enough in (min(2, scene.object_count), 1):
        for i in order:
            goals = feasible_goals(scene, kinds[i])
            if len({goal.object for goal in goals}) >= enough:
                return goals[rng.integers(len(goals))]
    raise ValueError("no goal is feasible in this scene; a level needs a plate or two objects")


def swapped_goal(scene: Scene, goal: Goal, rng: np.random.Generator) -> Goal:
    """A feasible goal of the same kind about another object, with the same target if possible.

    ValueError where the scene has no other object to ask for.
    """
    others = [g for g in feasible_goals(scene, goal.kind) if g.object != goal.object]
    if not others:
        raise ValueError(
            f"no other object of the scene can be asked to {goal.kind}; swap needs two objects"
        )
    same_target = [g for g in others if g.target == goal.target]
    candidates = same_target or others
    return candidates[rng.integers(len(candidates))]


def distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Euclidean distance in table sides."""
    return math.hypot(a[0] - b[0], a[1] - b[1])
