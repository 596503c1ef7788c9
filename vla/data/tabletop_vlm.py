"""All that a small PaliGemma is asked about random tabletop scenes: PaliGemma's own tasks.

    locate everything                     red square<loc…><loc…> ; …         centres: y, x
    count everything                      square2 red3 object6 …             all kinds, any order
    detect red square ; blue plate        <loc…>×4 red square ; …            boxes
    segment red square                    <loc…>×4<seg…>×16 red square       boxes and masks
    answer en is there a red circle?      no
    caption en                            a red square, a cyan circle and a blue plate

Boxes are rounded to one of `BINS` equal parts of the side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from backbone import tasks
from backbone.detections import Box, Detection, detection_answer
from backbone.mask_codec import MaskCodec, cut
from envs.tabletop.render import render
from envs.tabletop.scene import EASY, STANDARD, Scene, sample_scene
from envs.tabletop.truth import boxes, masks
from vla.data.tabletop_questions import ask
from vla.data.tabletop_text import caption, everything, middle, numbers
from vla.data.text import TextExample

BINS = 96
MASK_SIZE = 288  # pixels of the picture that masks are cut from
SHARES = {
    "locate": 0.05,
    "count": 0.1,
    "detect": 0.2,
    "segment": 0.1,
    "question": 0.5,
    "caption": 0.05,
}
QUESTIONS = {"colour": 0.25, "count": 0.25, "presence": 0.15, "relation": 0.2, "side": 0.15}


# (y0, x0, y1, x1) of what can be seen, by name
Boxes = Mapping[str, tuple[float, float, float, float]]


@dataclass(frozen=True)
class TabletopVLM:
    """A stream of examples of the top camera; the i-th is a pure function of (seed, i).

    image_size: pixels. codec: turns masks into codes; None where no mask is asked for. easy: share
    of scenes of the easier level. shares: of the tasks; they sum to 1. texts: how many of them, as
    they are drawn, each picture is asked for. Raises ValueError for none.
    """

    image_size: int
    codec: MaskCodec | None = None
    seed: int = 0
    easy: float = 0.1
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)
    texts: int = 1

    def __post_init__(self):
        if self.texts < 1:
            raise ValueError(f"texts is {self.texts}; each picture needs 1 or more")

    def __getitem__(self, index: int) -> TextExample:
        rng = np.random.default_rng((self.seed, index))
        scene = sample_scene(rng, EASY if rng.random() < self.easy else STANDARD)
        scene = scene.with_random_gripper(rng)
        places = boxes(scene, "top")
        first, *others = (self._text(scene, places, rng) for _ in range(self.texts))
        picture = render(scene, "top", self.image_size)[None]
        return TextExample(picture, *first, also=tuple(others))

    def _text(self, scene: Scene, places: Boxes, rng: np.random.Generator) -> tuple[str, str]:
        """A prompt and its answer."""
        task = list(self.shares)[rng.choice(len(self.shares), p=list(self.shares.values()))]
        match task:
            case "locate":
                prompt, answer = everything(scene, rng, BINS)
            case "count":
                prompt, answer = numbers(scene, rng)
            case "detect":
                names = some_names(places, rng, 4)
                prompt, answer = tasks.detect(names), detection_answer(boxed(places, names))
            case "segment":
                assert self.codec is not None, "segmentation needs a codec"
                names = some_names(places, rng, 2)
                answer = detection_answer(masked(scene, boxed(places, names), self.codec))
                prompt = tasks.segment(names)
            case "question":
                kind = list(QUESTIONS)[rng.choice(len(QUESTIONS), p=list(QUESTIONS.values()))]
                question = ask(scene, rng, kind)
                prompt, answer = tasks.answer(question.text), question.answer
            case "caption":
                prompt, answer = tasks.caption(), caption(scene)
            case _:
                raise ValueError(f"unknown task {task!r}; known are {', '.join(SHARES)}")
        return prompt, answer


def some_names(visible: Iterable[str], rng: np.random.Generator, most: int) -> list[str]:
    """One to `most` of the things that can be seen, in random order."""
    names = sorted(visible)
    count = int(rng.integers(1, min(most, len(names)) + 1))
    return rng.permutation(names)[:count].tolist()


def boxed(places: Boxes, names: list[str]) -> list[Detection]:
    """The boxes of these things, as answers tell them."""
    return [Detection(name, rounded(places[name])) for name in names]


def masked(scene: Scene, things: list[Detection], codec: MaskCodec) -> list[Detection]:
    """These things of the scene with mask codes."""
    seen = masks(scene, "top", MASK_SIZE)
    empty = np.zeros((MASK_SIZE, MASK_SIZE), bool)
    parts = np.stack([cut(seen.get(thing.name, empty), thing.box) for thing in things])
    with torch.no_grad():
        codes = codec.encode(torch.from_numpy(parts)).tolist()
    return [replace(thing, codes=tuple(code)) for thing, code in zip(things, codes, strict=True)]


def rounded(box: tuple[float, float, float, float]) -> Box:
    """A box (y0, x0, y1, x1) as answers tell it."""
    y0, x0, y1, x1 = (middle(at, BINS) / 1023 for at in box)
    return Box(x0, y0, x1, y1)
