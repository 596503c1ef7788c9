"""Questions about tabletop scenes with one right answer each, exact by construction.

    colour     what colours are the squares?                    cyan and red
    count      how many blue things are there?                  2
    presence   is there a red circle?                           no
    relation   is the red square left of the blue plate?        yes
    side       is the red square above or below the blue plate?  below

Half of the presence and relation questions are answered by yes. What is asked about but not there
is of a colour and a shape that are, where possible, so that neither alone decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from envs.tabletop.scene import COLOURS, PLATE, SHAPES, Scene

MARGIN = 0.05  # table sides: nearer centres are neither left nor right of each other


@dataclass(frozen=True)
class Question:
    """kind: one of `KINDS`. text: without PaliGemma's `answer en`."""

    kind: str
    text: str
    answer: str


def ask(scene: Scene, rng: np.random.Generator, kind: str | None = None) -> Question:
    """A random question of a kind, or of any. Raises ValueError for an unknown kind."""
    if kind is None:
        kind = list(KINDS)[rng.integers(len(KINDS))]
    if kind not in KINDS:
        raise ValueError(f"no questions of kind {kind!r}; there are {', '.join(KINDS)}")
    text, answer = KINDS[kind](scene, rng)
    return Question(kind, text, answer)


def _colour(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Of all things of one shape, in alphabetical order."""
    shape = scene.items[rng.integers(len(scene.items))].shape
    colours = sorted(item.colour for item in scene.items if item.shape == shape)
    if len(colours) == 1:
        return f"what colour is the {shape}?", colours[0]
    return f"what colours are the {shape}s?", f"{', '.join(colours[:-1])} and {colours[-1]}"


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    kind = rng.integers(3)
    if kind == 0:
        return "how many objects are there?", str(len(scene.objects))
    if kind == 1:
        shape = (*SHAPES, PLATE)[rng.integers(4)]
        number = sum(item.shape == shape for item in scene.items)
        return f"how many {shape}s are there?", str(number)
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    number = sum(item.colour == colour for item in scene.items)
    return f"how many {colour} things are there?", str(number)


def _presence(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    names = {item.name for item in scene.items}
    if rng.random() < 0.5:
        return f"is there a {sorted(names)[rng.integers(len(names))]}?", "yes"
    colours = sorted({item.colour for item in scene.items})
    shapes = sorted({item.shape for item in scene.items})
    near = [f"{c} {s}" for c in colours for s in shapes if f"{c} {s}" not in names]
    near = near or [
        f"{c} {s}" for c in COLOURS for s in (*SHAPES, PLATE) if f"{c} {s}" not in names
    ]
    return f"is there a {near[rng.integers(len(near))]}?", "no"


def _relation(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    first, second, word = _apart(scene, rng)
    yes = rng.random() < 0.5
    if not yes:
        first, second = second, first
    return f"is the {first} {word} the {second}?", "yes" if yes else "no"


def _side(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """What a relation is learned from: one bit, of two places and of no word about them."""
    first, second, word = _apart(scene, rng)
    choice = "left or right of" if word.endswith("of") else "above or below"
    return f"is the {first} {choice} the {second}?", word.removesuffix(" of")


def _apart(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str]:
    """Two things and a true word about the first as seen from the second."""
    pairs = [
        (i, j, word)
        for i in range(len(scene.items))
        for j in range(len(scene.items))
        for word, axis, sign in _SIDES
        if sign * (scene.position[j][axis] - scene.position[i][axis]) > MARGIN
    ]
    i, j, word = pairs[rng.integers(len(pairs))]
    return scene.items[i].name, scene.items[j].name, word


_SIDES = (("left of", 0, 1), ("right of", 0, -1), ("above", 1, 1), ("below", 1, -1))

KINDS: dict[str, Callable[[Scene, np.random.Generator], tuple[str, str]]] = {
    "colour": _colour,
    "count": _count,
    "presence": _presence,
    "relation": _relation,
    "side": _side,
}
