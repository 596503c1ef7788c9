"""A scripted expert that reads the true state.

It keeps no memory: every action follows from the scene alone, so it recovers from noise, kicks and
any state that `Scene.with_random_gripper` makes, and can label all of them.
"""

import numpy as np

from envs.tabletop.goal import SIDES, Goal, contact_distance, distance, distance_to_side
from envs.tabletop.physics import advance
from envs.tabletop.scene import CLOSED, OPEN, STEP, TIP_RADIUS, Scene

Action = tuple[float, float, float]
Point = tuple[float, float]

CLOSE, RELEASE = 1.0, -1.0
NEAR = 0.35  # share of a tolerance within which the fingers move
WELL_INSIDE = 0.03  # how far past the border of its strip an object is pushed


def expert_action(scene: Scene, goal: Goal) -> Action:
    """The next action (dx, dy, grip) towards `goal`; at the goal, one that changes nothing."""
    if _done(scene, goal):
        return 0.0, 0.0, RELEASE if scene.opening == OPEN else CLOSE
    if goal.kind == "push" and scene.held is None:
        start = _behind(scene, goal)
        if start is not None:
            return _push(scene, goal, start)
    if scene.opening == CLOSED:
        return 0.0, 0.0, RELEASE  # opens on the spot, so that it pushes nothing on its way
    obstacle = _obstacle(scene, goal)
    if scene.held is None:
        return _fetch(scene, goal.object if obstacle is None else obstacle)
    if scene.held != goal.object or obstacle is not None:
        return _carry(scene, _free_place(scene), STEP / 2)
    return _deliver(scene, goal)


def expert_chunk(scene: Scene, goal: Goal, horizon: int) -> np.ndarray:
    """The expert's next actions, played ahead on a copy of `scene`: float32 [horizon, 3]."""
    ahead = scene.copy()
    actions = np.empty((horizon, 3), np.float32)
    for row in actions:
        action = expert_action(ahead, goal)
        row[:] = action
        advance(ahead, action)
    return actions


def _done(scene: Scene, goal: Goal) -> bool:
    if isinstance(goal.target, str):
        inside = scene.level.strip - WELL_INSIDE
        return distance_to_side(scene, goal.object, goal.target) <= inside
    return goal.holds(scene)


def _towards(scene: Scene, target: Point, grip: float) -> Action:
    dx = min(max((target[0] - scene.gripper[0]) / STEP, -1.0), 1.0)
    dy = min(max((target[1] - scene.gripper[1]) / STEP, -1.0), 1.0)
    return dx, dy, grip


def _fetch(scene: Scene, index: int) -> Action:
    """Go above an object, then close."""
    place = scene.position[index]
    over = distance(scene.gripper, place) <= NEAR * scene.level.grasp_radius
    return _towards(scene, place, CLOSE if over else RELEASE)


def _carry(scene: Scene, place: Point, tolerance: float) -> Action:
    """Bring the held object to a place, then let go."""
    there = distance(scene.gripper, place) <= tolerance
    return _towards(scene, place, RELEASE if there else CLOSE)


def _deliver(scene: Scene, goal: Goal) -> Action:
    """Carry the goal's object to its target."""
    level = scene.level
    if isinstance(goal.target, str):  # too near to the opposite edge to push: carried instead
        return _towards(scene, _in_strip(scene, goal.target), CLOSE)
    tolerance = level.plate_tolerance if goal.kind == "put" else level.stack_tolerance
    return _carry(scene, scene.position[goal.target], NEAR * tolerance)


def _in_strip(scene: Scene, side: str) -> Point:
    """The point of a side's strip that is straight ahead of the gripper, well inside."""
    x, y = scene.gripper
    depth = scene.level.strip / 2
    return {"left": (depth, y), "right": (1 - depth, y), "top": (x, depth)}.get(
        side, (x, 1 - depth)
    )


def _behind(scene: Scene, goal: Goal) -> Point | None:
    """Where to close before a push, or None if the object cannot be pushed from where it is."""
    if scene.depth(goal.object) > 0:
        return None
    ux, uy = SIDES[str(goal.target)]
    x, y = scene.position[goal.object]
    back = contact_distance(scene) + TIP_RADIUS
    start = (x - ux * back, y - uy * back)
    if min(start) < -TIP_RADIUS or max(start) > 1 + TIP_RADIUS:
        return None
    return min(max(start[0], 0.0), 1.0), min(max(start[1], 0.0), 1.0)


def _push(scene: Scene, goal: Goal, start: Point) -> Action:
    """Go behind the object with open fingers, close, and push as long as it stays in front."""
    if scene.opening == OPEN:
        there = distance(scene.gripper, start) <= NEAR * scene.level.grasp_radius
        return _towards(scene, start, CLOSE if there else RELEASE)
    ux, uy = SIDES[str(goal.target)]
    ox = scene.position[goal.object][0] - scene.gripper[0]
    oy = scene.position[goal.object][1] - scene.gripper[1]
    along, touch = ox * ux + oy * uy, contact_distance(scene)
    side_x, side_y = ox - along * ux, oy - along * uy
    if not (0 < along < touch + STEP and abs(side_x) + abs(side_y) < 0.7 * touch):
        return 0.0, 0.0, RELEASE
    if along > touch:  # not in contact yet: the place to get behind the middle of it
        ahead = (scene.gripper[0] + side_x, scene.gripper[1] + side_y)
        dx, dy, _ = _towards(scene, ahead, CLOSE)
        return (ux, dy, CLOSE) if ux else (dx, uy, CLOSE)
    return float(ux), float(uy), CLOSE


def _obstacle(scene: Scene, goal: Goal) -> int | None:
    """An object to clear away first: one on the goal's object, or where that would land."""
    top = scene.top_of(goal.object)
    if top != goal.object:
        return top
    if isinstance(goal.target, str):
        return None
    centre = scene.position[goal.target]
    for i in scene.objects:
        if i in (goal.object, goal.target, scene.held):
            continue
        if scene.on[i] == goal.target and goal.kind == "stack":
            return scene.top_of(i)
        if (
            goal.kind == "put"
            and distance(scene.position[i], centre) <= scene.level.stack_tolerance
        ):
            return scene.top_of(i)
    return None


def _free_place(scene: Scene) -> Point:
    """Where to lay down an object that is in the way: here if there is room, else near by."""
    grid = [(0.14 + 0.12 * i, 0.14 + 0.12 * j) for i in range(7) for j in range(7)]
    here = scene.gripper
    low, high = scene.level.object_radius, 1 - scene.level.object_radius
    if low <= min(here) and max(here) <= high:
        grid.append(here)
    free = [place for place in grid if _room(scene, place) >= 0]
    if free:
        return min(free, key=lambda place: distance(place, here))
    return max(grid, key=lambda place: _room(scene, place))


def _room(scene: Scene, place: Point) -> float:
    """Space between an object laid down at `place` and its nearest neighbour; negative: none."""
    level = scene.level
    room = 1.0
    for i, centre in enumerate(scene.position):
        if i != scene.held:
            radius = level.plate_radius if i in scene.plates else level.object_radius
            room = min(room, distance(place, centre) - radius - level.object_radius)
    return room - 0.02
