"""Pictures of a scene, drawn from signed distances so that shifts below a pixel stay visible.

Two cameras: "top" sees the whole table; "wrist" sees a square of half a table side around the
gripper. The table is mid-grey, which is zero once a model has scaled pixels to [-1, 1].
"""

import math

import numpy as np

from envs.tabletop.scene import CLOSED, COLOURS, HOLDING, OPEN, Scene

CAMERAS = ("top", "wrist")
TABLE, FLOOR = 127.0, 96.0
WRIST_SPAN = 0.5

RIM = 0.03  # width of a plate's ring
OUTLINE = 0.008
SQUARE_HALF = 0.87  # half a square's side, in radii
TRIANGLE_INNER = 0.6  # the radius of the circle inside a triangle, in radii
STACKED_SCALE = 0.62  # an object on top of another is drawn smaller, so both can be seen

_WHITE, _BLACK = np.full(3, 255, np.float32), np.zeros(3, np.float32)
_RGB = {name: np.array(rgb, np.float32) for name, rgb in COLOURS.items()}


def view(scene: Scene, camera: str) -> tuple[float, float, float]:
    """Left edge, top edge and side of the square that `camera` sees, in table units."""
    if camera == "top":
        return 0.0, 0.0, 1.0
    if camera == "wrist":
        x, y = scene.gripper
        return x - WRIST_SPAN / 2, y - WRIST_SPAN / 2, WRIST_SPAN
    raise ValueError(f"camera {camera!r} is unknown; choose one of {', '.join(CAMERAS)}")


def render(scene: Scene, camera: str, size: int) -> np.ndarray:
    """The picture of `camera`: uint8 RGB [size, size, 3]."""
    left, top, span = view(scene, camera)
    scale = size / span
    canvas = _table(left, top, scale, size)
    for i in drawing_order(scene):
        x, y = scene.position[i]
        sd, window = item_distance(scene, i, (x - left) * scale, (y - top) * scale, scale, size)
        if sd.size:
            _paint_item(canvas[window], sd, _RGB[scene.items[i].colour], scale, i in scene.plates)
    _paint_gripper(canvas, scene, left, top, scale)
    return np.rint(canvas).astype(np.uint8)


def drawing_order(scene: Scene) -> list[int]:
    """Indices of all items from the lowest to the highest: plates, stacks upwards, held object."""
    objects = sorted(scene.objects, key=lambda i: (i == scene.held, scene.depth(i)))
    return [*scene.plates, *objects]


def drawn_radius(scene: Scene, index: int) -> float:
    """The radius an item is drawn with; objects get smaller with each object below them."""
    if index in scene.plates:
        return scene.level.plate_radius
    return scene.level.object_radius * STACKED_SCALE ** scene.depth(index)


def corners(shape: str, radius: float) -> np.ndarray:
    """The border of a drawn shape around its centre: float64 [N, 2], a convex polygon."""
    if shape == "square":
        half = SQUARE_HALF * radius
        return half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if shape == "triangle":
        inner = TRIANGLE_INNER * radius
        return inner * np.array([(0, -2), (math.sqrt(3), 1), (-math.sqrt(3), 1)])
    turns = np.linspace(0, 2 * math.pi, 48, endpoint=False)  # the four extreme points among them
    return radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)


def item_distance(
    scene: Scene, index: int, u: float, v: float, scale: float, size: int
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Signed distance in pixels to the item's border, negative inside, for the pixels near (u, v).

    Returns float32 [h, w] and the window (rows, columns) of the picture it belongs to, which is
    empty for an item out of view. A plate counts with the space inside its ring.
    """
    shape, radius = scene.items[index].shape, drawn_radius(scene, index) * scale
    dx, dy, window = _offsets(u, v, 1.25 * radius + 1, 1.25 * radius + 1, size)
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - SQUARE_HALF * radius, window
    if shape == "triangle":
        inner = TRIANGLE_INNER * radius  # of the circle inside; the apex points up
        return np.maximum(0.8660254 * np.abs(dx) - 0.5 * dy, dy) - inner, window
    return np.sqrt(dx * dx + dy * dy) - radius, window


def _offsets(
    u: float, v: float, reach_x: float, reach_y: float, size: int
) -> tuple[np.ndarray, np.ndarray, tuple[slice, slice]]:
    """Offsets of pixel centres from (u, v) as a row and a column, and their window."""
    x0, x1 = max(0, int(u - reach_x)), min(size, int(u + reach_x) + 1)
    y0, y1 = max(0, int(v - reach_y)), min(size, int(v + reach_y) + 1)
    dx = np.arange(x0, max(x0, x1), dtype=np.float32) + np.float32(0.5 - u)
    dy = np.arange(y0, max(y0, y1), dtype=np.float32) + np.float32(0.5 - v)
    return dx[None, :], dy[:, None], (slice(y0, max(y0, y1)), slice(x0, max(x0, x1)))


def coverage(sd: np.ndarray) -> np.ndarray:
    """Share of a pixel that lies inside, from its signed distance in pixels."""
    return np.clip(0.5 - sd, 0, 1)


def _table(left: float, top: float, scale: float, size: int) -> np.ndarray:
    if scale == size:
        return np.full((size, size, 3), TABLE, np.float32)
    edges = np.arange(size, dtype=np.float32) + np.float32(0.5)

    def inside(start: float) -> np.ndarray:
        middle = np.abs(edges - np.float32((0.5 - start) * scale))
        return coverage(middle - np.float32(scale / 2))

    on_table = inside(top)[:, None] * inside(left)[None, :]
    grey = FLOOR + on_table * np.float32(TABLE - FLOOR)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _paint_item(
    patch: np.ndarray, sd: np.ndarray, rgb: np.ndarray, scale: float, is_plate: bool
) -> None:
    """Blend one item into `patch`, in place: a ring for a plate, an outlined shape otherwise."""
    if is_plate:
        half = RIM / 2 * scale
        patch += coverage(np.abs(sd + half) - half)[:, :, None] * (rgb - patch)
        return
    dark = 0.3 * rgb
    inner = coverage(sd + np.float32(OUTLINE * scale))[:, :, None]
    patch += coverage(sd)[:, :, None] * (dark + inner * (rgb - dark) - patch)


def _paint_gripper(canvas: np.ndarray, scene: Scene, left: float, top: float, scale: float) -> None:
    """Two fingers: white and apart when open, black at the object's sides or together if closed."""
    gap = {OPEN: 1.45, HOLDING: 1.1, CLOSED: 0.3}[scene.opening] * scene.level.object_radius
    colour = _WHITE if scene.opening == OPEN else _BLACK
    half_width, half_height = 0.012 * scale, 0.045 * scale
    u, v = (scene.gripper[0] - left) * scale, (scene.gripper[1] - top) * scale
    for finger in (u - gap * scale, u + gap * scale):
        dx, dy, window = _offsets(finger, v, half_width + 1, half_height + 1, canvas.shape[0])
        alpha = coverage(np.abs(dx) - half_width) * coverage(np.abs(dy) - half_height)
        patch = canvas[window]
        patch += alpha[:, :, None] * (colour - patch)
