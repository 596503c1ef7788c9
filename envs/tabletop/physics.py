"""How the table changes in one step.

The move comes first, then the fingers. An open gripper passes above everything; a closed empty one
pushes what it touches, without slip; a held object goes where the gripper goes.
"""

import math
from collections.abc import Sequence

from envs.tabletop.goal import contact_distance, distance
from envs.tabletop.scene import CLOSED, HOLDING, OPEN, STEP, Scene


def advance(scene: Scene, action: Sequence[float]) -> None:
    """Carry out one action, in place: dx, dy in [-1, 1] times STEP, then grip > 0 closes.

    Values outside of [-1, 1] are clipped.
    """
    dx, dy, grip = (min(max(float(a), -1.0), 1.0) for a in action)
    x, y = scene.gripper
    goal = (min(max(x + STEP * dx, 0.0), 1.0), min(max(y + STEP * dy, 0.0), 1.0))
    if scene.opening == CLOSED:
        _push(scene, goal)
    scene.gripper = goal
    if scene.held is not None:
        scene.position[scene.held] = goal
    if grip > 0 and scene.opening == OPEN:
        _close(scene)
    elif grip <= 0 and scene.opening != OPEN:
        _open(scene)


def below(scene: Scene, index: int) -> int | None:
    """What object `index` would rest on if it were let go: the topmost object whose stack it is
    above, else the nearest plate within tolerance, else None, the table."""
    place, level = scene.position[index], scene.level
    stacks = [i for i in scene.objects if i not in (index, scene.held)]
    near = [
        (distance(place, scene.position[i]), i) for i in stacks if not _carries(scene, index, i)
    ]
    near = [(d, i) for d, i in near if d <= level.stack_tolerance]
    if near:
        return scene.top_of(min(near)[1])
    near = [(distance(place, scene.position[i]), i) for i in scene.plates]
    near = [(d, i) for d, i in near if d <= level.plate_tolerance]
    return min(near)[1] if near else None


def _carries(scene: Scene, lower: int, upper: int) -> bool:
    """Whether object `upper` rests on object `lower`, directly or through others."""
    support: int | None = upper
    while support is not None and support != lower:
        support = scene.on[support]
    return support == lower


def _close(scene: Scene) -> None:
    """Close on the nearest object within reach, or on the topmost of its stack, and centre it."""
    near = min((distance(scene.gripper, scene.position[i]), i) for i in scene.objects)
    if near[0] > scene.level.grasp_radius:
        scene.opening = CLOSED
        return
    held = scene.top_of(near[1])
    scene.opening, scene.held, scene.on[held] = HOLDING, held, None
    scene.position[held] = scene.gripper


def _open(scene: Scene) -> None:
    """Open, and let go of a held object onto whatever lies below it."""
    held, scene.held, scene.opening = scene.held, None, OPEN
    if held is not None:
        scene.position[held] = _inside(scene, scene.position[held])
        scene.on[held] = below(scene, held)


def _push(scene: Scene, goal: tuple[float, float]) -> None:
    """Shift every stack that the closed gripper meets on its straight way to `goal`."""
    x, y = scene.gripper
    dx, dy = goal[0] - x, goal[1] - y
    for i in scene.objects:
        support = scene.on[i]
        if support is not None and support < scene.object_count:
            continue  # moves with the object at the foot of its stack
        free = _free_way(scene.position[i][0] - x, scene.position[i][1] - y, dx, dy, scene)
        if free < 1:
            shift = ((1 - free) * dx, (1 - free) * dy)
            for j in scene.objects:
                if _carries(scene, i, j):
                    px, py = scene.position[j]
                    scene.position[j] = _inside(scene, (px + shift[0], py + shift[1]))
            plate = [p for p in scene.plates if _within_plate(scene, i, p)]
            scene.on[i] = min(plate, default=None, key=lambda p: _gap(scene, i, p))


def _free_way(ox: float, oy: float, dx: float, dy: float, scene: Scene) -> float:
    """Share of the move (dx, dy) before the gripper touches an object at offset (ox, oy); 1 if it
    stays free or moves away."""
    approach, length = dx * ox + dy * oy, dx * dx + dy * dy
    if approach <= 0:
        return 1.0
    reach = contact_distance(scene)
    room = ox * ox + oy * oy - reach * reach
    if room <= 1e-9:
        return 0.0
    root = approach * approach - length * room
    return min(1.0, (approach - math.sqrt(root)) / length) if root > 0 else 1.0


def _within_plate(scene: Scene, index: int, plate: int) -> bool:
    return _gap(scene, index, plate) <= scene.level.plate_tolerance


def _gap(scene: Scene, a: int, b: int) -> float:
    return distance(scene.position[a], scene.position[b])


def _inside(scene: Scene, place: tuple[float, float]) -> tuple[float, float]:
    """The nearest place at which an object lies wholly on the table."""
    low, high = scene.level.object_radius, 1 - scene.level.object_radius
    return min(max(place[0], low), high), min(max(place[1], low), high)
