"""Prompts and answers about random tabletop scenes, exact by construction.

What a small PaliGemma is pretrained on before it becomes the backbone of a tabletop policy:

    locate everything  →  red<loc…><loc…> ; blue plate<loc…><loc…>             centres: y, x
    put the red square on the blue plate  →  <loc…>×4 red square ; <loc…>×4 blue plate
    detect red square ; blue plate        →  <loc…>×4 red square ; <loc…>×4 blue plate
    answer en what colour is the plate?   →  blue
    caption en                            →  a red square and a blue plate

"detect", "answer en" and "caption en" are PaliGemma's own prompts; boxes are (y0, x0, y1, x1) of
the top camera's picture, one `<loc>` token per coordinate (arXiv 2407.07726, section 3.2). Ours
are rounded to the middle of one of `LOC_STEPS` equal parts of the side, so that a small model sees
each of the tokens often enough.

"locate everything" is what seeing is learned from: every thing of a scene is asked for, and its
name stands right before its place, so one step of attention from a colour's word to the patches of
that colour already pays. From the other tasks alone, where the place comes first and words must
travel, nothing is learned for a long time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from envs.tabletop.goal import sample_goal
from envs.tabletop.instruction import instruction
from envs.tabletop.render import render
from envs.tabletop.scene import COLOURS, EASY, PLATE, SHAPES, STANDARD, Scene, sample_scene
from envs.tabletop.truth import Box, boxes, entities
from vla.data.text import TextExample

LOC_STEPS = 64
COUNTED = ("object", *SHAPES, PLATE, *COLOURS)


@dataclass(frozen=True)
class TabletopText:
    """A stream of examples; the i-th is a pure function of (seed, i).

    image_size: pixels. cameras: pictures per example, in this order. locate: share of examples that
    ask for everything. standard: share of scenes of the harder level.
    """

    image_size: int
    cameras: tuple[str, ...] = ("top", "wrist")
    seed: int = 0
    locate: float = 0.3
    standard: float = 0.5

    def __getitem__(self, index: int) -> TextExample:
        rng = np.random.default_rng((self.seed, index))
        scene = sample_scene(rng, STANDARD if rng.random() < self.standard else EASY)
        if rng.random() < self.locate:
            scene = scene.with_random_gripper(rng)
            prompt, answer = everything(scene, rng)
        else:
            scene, prompt, answer = _task(scene, rng)
        images = np.stack([render(scene, camera, self.image_size) for camera in self.cameras])
        return TextExample(images, prompt, answer)


def _task(scene: Scene, rng: np.random.Generator) -> tuple[Scene, str, str]:
    kind = rng.random()
    if kind < 0.65:
        return _instruction(scene, rng)
    scene = scene.with_random_gripper(rng)
    ask = _detect if kind < 0.85 else _question if kind < 0.95 else _caption
    return scene, *ask(scene, rng)


def everything(scene: Scene, rng: np.random.Generator, steps: int = LOC_STEPS) -> tuple[str, str]:
    """Each thing once, in random order; often by its colour alone where that is enough."""
    colours = [item.colour for item in scene.items]
    answer = []
    for i in rng.permutation(len(scene.items)):
        item, (x, y) = scene.items[i], scene.position[i]
        short = colours.count(item.colour) == 1 and rng.random() < 0.5
        answer.append(f"{item.colour if short else item.name}{loc(y, steps)}{loc(x, steps)}")
    return "locate everything", " ; ".join(answer)


def numbers(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """How many things of each kind of `COUNTED` there are, in random order: eleven numbers, each
    right after its word, where a question asks for one."""
    counts = Counter(word for item in scene.items for word in item.name.split())
    counts["object"] = len(scene.objects)
    order = rng.permutation(COUNTED).tolist()
    return "count everything", " ".join(f"{kind}{counts[kind]}" for kind in order)


def _instruction(scene: Scene, rng: np.random.Generator) -> tuple[Scene, str, str]:
    """What a policy is told; the answer is where the things that it names are."""
    goal = sample_goal(scene, rng)
    prompt = instruction(goal, scene, rng)
    named = [scene.items[goal.object].name]
    if not isinstance(goal.target, str):
        named.append(scene.items[goal.target].name)
    scene = scene.with_random_gripper(rng, favourite=goal.object)
    return scene, prompt, located(named, boxes(scene, "top"))


def _detect(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    names = entities(scene)
    wanted = rng.permutation(names)[: rng.integers(1, min(4, len(names)) + 1)].tolist()
    return f"detect {' ; '.join(wanted)}", located(wanted, boxes(scene, "top"))


def _question(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    item = scene.items[rng.integers(len(scene.items))]
    kind = rng.integers(3)
    if kind == 0:
        return "answer en how many objects are there?", str(len(scene.objects))
    if kind == 1:
        alike = sorted(other.colour for other in scene.items if other.shape == item.shape)
        return f"answer en what colour is the {item.shape}?", " and ".join(alike)
    alike = sorted(other.shape for other in scene.items if other.colour == item.colour)
    return f"answer en what is {item.colour}?", " and ".join(alike)


def _caption(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return "caption en", caption(scene)


def caption(scene: Scene) -> str:
    """Objects from left to right, then plates from left to right."""
    order = sorted(
        range(len(scene.items)),
        key=lambda i: (scene.items[i].shape == PLATE, scene.position[i][0]),
    )
    names = [f"a {scene.items[i].name}" for i in order]
    head, last = names[:-1], names[-1]
    return f"{', '.join(head)} and {last}" if head else last


def located(names: list[str], found: dict[str, Box]) -> str:
    """PaliGemma's answer to "detect": four `<loc>` and the name of each thing in `found`."""
    return " ; ".join(
        "".join(map(loc, found[name])) + f" {name}" for name in names if name in found
    )


def loc(coordinate: float, steps: int = LOC_STEPS) -> str:
    """The token in the middle of the part of the side that a coordinate in [0, 1] lies in."""
    return f"<loc{middle(coordinate, steps):04d}>"


def middle(coordinate: float, steps: int) -> int:
    """The number of that token, 0 to 1023."""
    part = min(int(coordinate * steps), steps - 1)
    return (2 * part + 1) * 1024 // (2 * steps)
