"""Goals in words."""

import numpy as np

from envs.tabletop.goal import Goal, Kind
from envs.tabletop.scene import Scene

PHRASES: dict[Kind, tuple[str, ...]] = {
    "put": (
        "put the {object} on the {target}",
        "place the {object} on the {target}",
        "move the {object} to the {target}",
        "set the {object} down on the {target}",
        "drop the {object} onto the {target}",
        "pick up the {object} and put it on the {target}",
    ),
    "push": (
        "push the {object} to the {target} side",
        "slide the {object} to the {target} side",
        "push the {object} to the {target} edge",
        "move the {object} to the {target} edge",
        "slide the {object} over to the {target}",
        "push the {object} over to the {target}",
    ),
    "stack": (
        "stack the {object} on the {target}",
        "put the {object} on top of the {target}",
        "place the {object} on top of the {target}",
        "set the {object} on the {target}",
        "drop the {object} onto the {target}",
        "pick up the {object} and stack it on the {target}",
    ),
}


def phrase(goal: Goal, scene: Scene, index: int) -> str:
    """The `index`-th way to ask for `goal`."""
    target = goal.target if isinstance(goal.target, str) else scene.items[goal.target].name
    return PHRASES[goal.kind][index].format(object=scene.items[goal.object].name, target=target)


def instruction(goal: Goal, scene: Scene, rng: np.random.Generator) -> str:
    """A random way to ask for `goal`, such as "put the red square on the blue plate"."""
    return phrase(goal, scene, int(rng.integers(len(PHRASES[goal.kind]))))
