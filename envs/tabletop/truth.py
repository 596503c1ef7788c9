"""What is where in a picture: exact labels for captions, questions, detection and segmentation."""

import numpy as np

from envs.tabletop.render import corners, coverage, drawing_order, drawn_radius, item_distance, view
from envs.tabletop.scene import Scene

Box = tuple[float, float, float, float]


def entities(scene: Scene) -> list[str]:
    """Names of all items, objects first: "red square", ..., "blue plate"."""
    return [item.name for item in scene.items]


def boxes(scene: Scene, camera: str) -> dict[str, Box]:
    """Box (y0, x0, y1, x1) in [0, 1] of each item that reaches into the camera's picture.

    A box encloses the part of the item within the picture's edges; what is hidden behind other
    items still counts.
    """
    left, top, span = view(scene, camera)
    found = {}
    for i, item in enumerate(scene.items):
        x, y = scene.position[i]
        centre = np.array([x - left, y - top])
        border = (centre + corners(item.shape, drawn_radius(scene, i))) / span
        if border.min() < 0 or border.max() > 1:
            border = _within_picture(border)
        if len(border):
            (x0, y0), (x1, y1) = border.min(axis=0).tolist(), border.max(axis=0).tolist()
            found[item.name] = (y0, x0, y1, x1)
    return found


def _within_picture(polygon: np.ndarray) -> np.ndarray:
    """The part of a convex polygon [N, 2] inside the unit square, empty if there is none
    (Sutherland and Hodgman 1974: cut by one edge after the other)."""
    for axis in (0, 1):
        for edge, sign in ((0.0, 1), (1.0, -1)):
            inside = sign * (polygon[:, axis] - edge)  # distance to the edge, positive inside
            kept = []
            for k in range(len(polygon)):
                before, here = inside[k - 1], inside[k]
                if before * here < 0:
                    share = before / (before - here)
                    kept.append(polygon[k - 1] + share * (polygon[k] - polygon[k - 1]))
                if here >= 0:
                    kept.append(polygon[k])
            polygon = np.array(kept).reshape(-1, 2)
    return polygon


def masks(scene: Scene, camera: str, size: int) -> dict[str, np.ndarray]:
    """Visible pixels of each item: bool [size, size]. Items with no visible pixel are left out.

    A pixel belongs to the highest item that covers half of it. A plate owns the table inside its
    ring. The gripper's fingers hide nothing.
    """
    left, top, span = view(scene, camera)
    scale = size / span
    owner = np.full((size, size), -1)
    for i in drawing_order(scene):
        x, y = scene.position[i]
        sd, window = item_distance(scene, i, (x - left) * scale, (y - top) * scale, scale, size)
        owner[window][coverage(sd) >= 0.5] = i
    return {item.name: owner == i for i, item in enumerate(scene.items) if (owner == i).any()}


def relations(scene: Scene) -> list[tuple[str, str, str]]:
    """Facts (who, "on" or "in", what): each object on a plate, an object or the "table", or in
    the "gripper"."""
    facts = []
    for i in scene.objects:
        below = scene.on[i]
        if i == scene.held:
            facts.append((scene.items[i].name, "in", "gripper"))
        else:
            name = "table" if below is None else scene.items[below].name
            facts.append((scene.items[i].name, "on", name))
    return facts
