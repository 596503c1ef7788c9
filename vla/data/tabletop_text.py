"""Prompts and answers about random tabletop scenes, exact by construction.

What a small PaliGemma is pretrained on before it becomes the backbone of a tabletop policy:

    put the red square on the blue plate  →  <loc…>×4 red square ; <loc…>×4 blue plate
    detect red square ; blue plate        →  <loc…>×4 red square ; <loc…>×4 blue plate
    answer en what colour is the plate?   →  blue
    caption en                            →  a red square and a blue plate

Boxes are (y0, x0, y1, x1) of the top camera's picture, each coordinate one `<loc>` token as in
PaliGemma (arXiv 2407.07726, section 3.2). Ours are rounded to the middle of one of `LOC_STEPS` equal
parts of the side, so that a small model sees each of the tokens often enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from envs.tabletop.goal import sample_goal
from envs.tabletop.instruction import instruction
from envs.tabletop.render import render
from envs.tabletop.scene import EASY, PLATE, STANDARD, Level, Scene, sample_scene
from envs.tabletop.truth import Box, boxes, entities
from vla.data.text import TextExample

LOC_STEPS = 64


@dataclass(frozen=True)
class TabletopText:
    """A stream of examples; the i-th is a pure function of (seed, i).

    image_size: pixels. cameras: pictures per example, in this order.
    lone: share of scenes with a single object and at most one plate, from which binding words to
    things is learned first.
    """

    image_size: int
    cameras: tuple[str, ...] = ("top", "wrist")
    seed: int = 0
    lone: float = 0.25

    def __getitem__(self, index: int) -> TextExample:
        rng = np.random.default_rng((self.seed, index))
        scene = sample_scene(rng, self._level(rng))
        kind = rng.random()
        if kind < 0.55 and scene.plates:
            scene, prompt, answer = _instruction(scene, rng)
        else:
            scene = scene.with_random_gripper(rng)
            ask = _detect if kind < 0.85 else _question if kind < 0.95 else _caption
            prompt, answer = ask(scene, rng)
        images = np.stack([render(scene, camera, self.image_size) for camera in self.cameras])
        return TextExample(images, prompt, answer)

    def _level(self, rng: np.random.Generator) -> Level:
        level = EASY if rng.random() < 0.5 else STANDARD
        if rng.random() < self.lone:
            return replace(level, objects=(1, 1), plates=(0, 1))
        return level


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
        number = len(scene.objects)
        return "answer en how many objects are there?", str(number)
    if kind == 1:
        alike = [other for other in scene.items if other.shape == item.shape]
        colours = " and ".join(sorted(other.colour for other in alike))
        return f"answer en what colour is the {item.shape}?", colours
    alike = [other for other in scene.items if other.colour == item.colour]
    shapes = " and ".join(sorted(other.shape for other in alike))
    return f"answer en what is {item.colour}?", shapes


def _caption(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Objects from left to right, then plates from left to right."""
    order = sorted(
        range(len(scene.items)),
        key=lambda i: (scene.items[i].shape == PLATE, scene.position[i][0]),
    )
    names = [f"a {scene.items[i].name}" for i in order]
    head, last = names[:-1], names[-1]
    return "caption en", f"{', '.join(head)} and {last}" if head else last


def located(names: list[str], found: dict[str, Box]) -> str:
    """PaliGemma's answer to "detect": four `<loc>` and the name for each thing that is in `found`."""
    return " ; ".join(
        "".join(f"<loc{_loc(c):04d}>" for c in found[name]) + f" {name}"
        for name in names
        if name in found
    )


def _loc(coordinate: float) -> int:
    part = min(int(coordinate * LOC_STEPS), LOC_STEPS - 1)
    return (2 * part + 1) * 1024 // (2 * LOC_STEPS)
