"""Where a stage's examples come from: endless streams of pictures, prompts and answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from backbone import tasks
from backbone.detections import Box, Detection, detection_answer
from backbone.image import prepare
from backbone.numerics import Resize
from backbone.paligemma import PaliGemmaConfig
from vla.data.annotated import Annotated, read_annotated
from vla.data.tabletop_vlm import SHARES, TabletopVLM
from vla.data.text import TextExample
from vla.training.sampler import CHOICE, sample_indices, stream

__all__ = ["AnnotatedExamples", "Examples", "JsonlData", "Source", "TabletopData"]

HELD_OUT_SEED = 1_000_000  # added to the seed: scenes that training never draws


class Examples(Protocol):
    """An endless stream; what stands at a position is always the same."""

    def __getitem__(self, position: int, /) -> TextExample: ...


class Source(Protocol):
    """What a config says of its data."""

    def training(self, model: PaliGemmaConfig, seed: int) -> Examples:
        """Pictures of the model's size. Raises ValueError or FileNotFoundError for bad data."""
        ...

    def held_out(self, model: PaliGemmaConfig, seed: int) -> Examples | None:
        """Examples that training never sees; None where there are none."""
        ...


@dataclass(frozen=True)
class TabletopData:
    """Scenes of the built-in world, one camera, asked about in PaliGemma's tasks.

    shares: of the tasks; they sum to 1. easy: share of scenes of the easier level.
    """

    shares: tuple[tuple[str, float], ...] = (
        ("locate", 0.3),
        ("detect", 0.2),
        ("question", 0.35),
        ("caption", 0.15),
    )
    easy: float = 0.5

    def __post_init__(self):
        known = [name for name in SHARES if name != "segment"]
        unknown = [name for name, _ in self.shares if name not in known]
        if unknown:
            raise ValueError(f"unknown task {unknown[0]!r} in shares; there are {', '.join(known)}")
        if abs(sum(share for _, share in self.shares) - 1) > 1e-6:
            raise ValueError(f"the shares {dict(self.shares)} don't sum to 1")

    def training(self, model: PaliGemmaConfig, seed: int) -> Examples:
        return TabletopVLM(model.resolution, None, seed, self.easy, dict(self.shares))

    def held_out(self, model: PaliGemmaConfig, seed: int) -> Examples:
        return self.training(model, seed + HELD_OUT_SEED)


@dataclass(frozen=True)
class JsonlData:
    """A folder of pictures with a JSONL file, as `vla.data.annotated` describes it.

    file, validation: the JSONL files. A line's prompt is its prefix; else made of its question;
    else "detect …" its objects; else "caption en". Of several answers each epoch takes another one,
    until all were taken.
    """

    file: Path
    validation: Path | None = None

    def training(self, model: PaliGemmaConfig, seed: int) -> Examples:
        return self._open(self.file, model, seed)

    def held_out(self, model: PaliGemmaConfig, seed: int) -> Examples | None:
        return None if self.validation is None else self._open(self.validation, model, seed)

    def _open(self, file: Path, model: PaliGemmaConfig, seed: int) -> Examples:
        annotated = read_annotated(file)
        return AnnotatedExamples(annotated, model.resolution, model.numerics.resize, seed)


@dataclass(frozen=True)
class AnnotatedExamples:
    """Examples in an order of their own for every epoch, pictures resized as they are asked for.

    size, resize: as in `backbone.image.prepare`. lower: answers in lower case.
    """

    annotated: tuple[Annotated, ...]
    size: int
    resize: Resize
    seed: int = 0
    lower: bool = False

    def __getitem__(self, position: int) -> TextExample:
        count = len(self.annotated)
        [index] = sample_indices(self.seed, [position], count)
        example = self.annotated[index]
        answer = self._answer(example, index, position // count)
        shape = partial(prepare, size=self.size, resize=self.resize)
        images = np.stack([shape(image) for image in example.read_images()])
        return TextExample(images, prompt(example), answer.lower() if self.lower else answer)

    def _answer(self, example: Annotated, index: int, epoch: int) -> str:
        if not example.suffixes:
            return detection_answer([_detection(example, k) for k in range(len(example.objects))])
        count = len(example.suffixes)
        order = stream(self.seed, CHOICE, index + epoch // count * len(self.annotated))
        return example.suffixes[order.permutation(count)[epoch % count]]


def prompt(example: Annotated) -> str:
    """What is asked of an example: see `JsonlData`."""
    if example.prefix is not None:
        return example.prefix
    if example.question is not None:
        return tasks.answer(example.question)
    if example.objects:
        return tasks.detect(sorted({o.label for o in example.objects}))
    return tasks.caption()


def _detection(example: Annotated, k: int) -> Detection:
    thing, (width, height) = example.objects[k], example.size
    return Detection(thing.label, Box.from_pixels(*thing.box, (height, width)))
