"""What lies on the table: levels, items, and the scene that everything else reads.

The table is the unit square. x grows to the right and y grows downwards, as in a picture, so
(0, 0) is the top left corner of the top camera. All lengths are in table sides.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (255, 0, 255),
    "cyan": (0, 255, 255),
}
SHAPES = ("square", "circle", "triangle")
PLATE = "plate"

STEP = 0.06  # the longest move along one axis in one step
TIP_RADIUS = 0.015  # half the width of the closed gripper

OPEN, HOLDING, CLOSED = 1.0, 0.5, 0.0


@dataclass(frozen=True)
class Level:
    """How crowded and how forgiving a table is. Ranges of counts are inclusive."""

    objects: tuple[int, int]
    plates: tuple[int, int]
    unique_colours: bool  # no colour twice in a scene; else only (colour, shape) pairs are unique
    object_radius: float
    grasp_radius: float  # closing this near to an object's centre holds it
    plate_radius: float
    plate_tolerance: float  # an object released this near to a plate's centre is on the plate
    stack_tolerance: float  # the same for an object released above another object
    strip: float  # width of the side strips that push goals end in
    max_steps: int


EASY = Level((2, 3), (1, 2), True, 0.065, 0.065, 0.11, 0.09, 0.065, 0.22, 60)
STANDARD = Level((3, 5), (2, 3), False, 0.05, 0.05, 0.085, 0.07, 0.05, 0.22, 80)


@dataclass(frozen=True)
class Item:
    """One thing on the table: an object (square, circle, triangle) or a plate."""

    colour: str
    shape: str

    @property
    def name(self) -> str:
        """The words that single it out in its scene, such as "red square"."""
        return f"{self.colour} {self.shape}"


@dataclass
class Scene:
    """The true state of the world. Objects come first in `items`, then plates.

    position: centre (x, y) of each item; on: what each item rests on, an index into `items`, or
    None for the table (and while it is held); gripper: (x, y) in [0, 1]; opening: OPEN, HOLDING or
    CLOSED; held: index of the object between the fingers, or None.
    """

    level: Level
    items: tuple[Item, ...]
    position: list[tuple[float, float]]
    on: list[int | None]
    gripper: tuple[float, float]
    opening: float = OPEN
    held: int | None = None

    def __post_init__(self) -> None:
        self.object_count = sum(item.shape != PLATE for item in self.items)

    @property
    def objects(self) -> range:
        """Indices of the objects."""
        return range(self.object_count)

    @property
    def plates(self) -> range:
        """Indices of the plates."""
        return range(self.object_count, len(self.items))

    @property
    def state(self) -> np.ndarray:
        """What the robot feels: float32 [3], gripper x, y in [0, 1] and opening in {0, 0.5, 1}."""
        return np.array([*self.gripper, self.opening], dtype=np.float32)

    def copy(self) -> "Scene":
        """A scene that can be changed without changing this one."""
        return replace(self, position=list(self.position), on=list(self.on))

    def index(self, name: str) -> int:
        """Index of the item called `name`; ValueError if the scene has none."""
        names = [item.name for item in self.items]
        if name not in names:
            raise ValueError(f"no {name!r} in this scene; it holds {', '.join(names)}")
        return names.index(name)

    def resting_on(self, index: int) -> int | None:
        """The object that rests directly on item `index`, or None."""
        return next((i for i in self.objects if self.on[i] == index), None)

    def top_of(self, index: int) -> int:
        """The topmost object of the stack that object `index` belongs to."""
        while (above := self.resting_on(index)) is not None:
            index = above
        return index

    def depth(self, index: int) -> int:
        """How many objects lie below object `index` in its stack."""
        below, depth = self.on[index], 0
        while below is not None and below < self.object_count:
            below, depth = self.on[below], depth + 1
        return depth

    def with_random_gripper(
        self, rng: np.random.Generator, favourite: int | None = None
    ) -> "Scene":
        """A copy whose gripper is in a random state, to learn from more than the expert's paths.

        Half of the positions are uniform on the table, half lie near an item. The gripper is open
        (45 %), closed and empty (20 %), or holds an object (35 %): mostly `favourite`, if given.
        A held object has left its old place; one that was held before lies on the table.
        """
        scene = self.copy()
        scene.held = None
        if rng.random() < 0.5:
            x, y = rng.uniform(0.02, 0.98, 2)
        else:
            anchor = scene.position[rng.integers(len(scene.items))]
            x, y = np.clip(rng.normal(anchor, 0.06), 0.02, 0.98)
        scene.gripper = (float(x), float(y))
        kind = rng.random()
        if kind < 0.35:
            chosen = int(rng.integers(scene.object_count))
            if favourite is not None and rng.random() < 0.8:
                chosen = favourite
            chosen = scene.top_of(chosen)
            scene.held, scene.opening = chosen, HOLDING
            scene.position[chosen], scene.on[chosen] = scene.gripper, None
        else:
            scene.opening = OPEN if kind < 0.8 else CLOSED
        return scene


def sample_scene(rng: np.random.Generator, level: Level) -> Scene:
    """A random scene of `level`: all on the table, apart from each other, gripper open anywhere.

    The same generator state gives the same scene. Objects keep so far from each other and from the
    edges that a closed gripper fits behind each of them. ValueError where a level asks for more
    things than fit, or than there are colours.
    """
    for _ in range(1000):
        items = _sample_items(rng, level)
        position = _sample_positions(rng, level, items)
        if position is not None:
            x, y = rng.uniform(0.05, 0.95, 2)
            return Scene(level, items, position, [None] * len(items), (float(x), float(y)))
    raise ValueError(
        f"no room for {level.objects[1]} objects and {level.plates[1]} plates on the table after"
        " 1000 tries; lower the counts or the radii of the level"
    )


def _sample_items(rng: np.random.Generator, level: Level) -> tuple[Item, ...]:
    objects = int(rng.integers(level.objects[0], level.objects[1] + 1))
    plates = int(rng.integers(level.plates[0], level.plates[1] + 1))
    names = list(COLOURS)
    needed = objects + plates if level.unique_colours else plates
    if needed > len(names):
        raise ValueError(f"{needed} things need different colours, but there are {len(names)}")
    if level.unique_colours:
        colours = [names[i] for i in rng.permutation(len(names))]
        shapes = rng.integers(len(SHAPES), size=objects)
        things = [Item(colours[i], SHAPES[shape]) for i, shape in enumerate(shapes)]
        plate_colours = colours[objects : objects + plates]
    else:
        pairs = rng.choice(len(names) * len(SHAPES), size=objects, replace=False)
        things = [Item(names[i // len(SHAPES)], SHAPES[i % len(SHAPES)]) for i in pairs]
        plate_colours = [names[i] for i in rng.permutation(len(names))[:plates]]
    return (*things, *(Item(colour, PLATE) for colour in plate_colours))


def _sample_positions(
    rng: np.random.Generator, level: Level, items: tuple[Item, ...]
) -> list[tuple[float, float]] | None:
    """Places for all items, plates first since they need more room; None where it got too tight."""
    radius = [level.plate_radius if item.shape == PLATE else level.object_radius for item in items]
    placed: dict[int, tuple[float, float]] = {}
    for i in sorted(range(len(items)), key=lambda i: -radius[i]):
        is_plate = items[i].shape == PLATE
        margin = radius[i] + (0.01 if is_plate else 2 * TIP_RADIUS + 0.03)
        for _ in range(40):
            x, y = rng.uniform(margin, 1 - margin, 2).tolist()
            if all(
                math.hypot(x - px, y - py)
                >= radius[i] + radius[j] + _gap(is_plate, items[j].shape == PLATE)
                for j, (px, py) in placed.items()
            ):
                placed[i] = (x, y)
                break
        else:
            return None
    return [placed[i] for i in range(len(items))]


def _gap(first_is_plate: bool, second_is_plate: bool) -> float:
    """Free space between two items: between two objects the closed gripper must fit."""
    return 0.015 if first_is_plate or second_is_plate else 2 * TIP_RADIUS + 0.02
