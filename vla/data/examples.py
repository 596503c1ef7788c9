"""Where a stage's examples come from: endless streams of pictures, prompts and answers."""

from __future__ import annotations

from collections.abc import Callable
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
from vla.data.text import TextExample, TextRoom
from vla.training.sampler import CHOICE, HELD_OUT_SEED, sample_indices, stream

__all__ = ["AnnotatedExamples", "Examples", "JsonlData", "Source", "TabletopData"]


class Examples(Protocol):
    """An endless stream; what stands at a position is always the same."""

    def __getitem__(self, position: int, /) -> TextExample: ...


class Source(Protocol):
    """What a config says of its data."""

    def training(self, model: PaliGemmaConfig, seed: int, room: TextRoom | None = None) -> Examples:
        """Pictures of the model's size; room: what a row of text holds, None: anything.

        Raises ValueError or FileNotFoundError for bad data.
        """
        ...

    def held_out(
        self, model: PaliGemmaConfig, seed: int, room: TextRoom | None = None
    ) -> Examples | None:
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

    def training(self, model: PaliGemmaConfig, seed: int, room: TextRoom | None = None) -> Examples:
        return TabletopVLM(model.resolution, None, seed, self.easy, dict(self.shares))

    def held_out(self, model: PaliGemmaConfig, seed: int, room: TextRoom | None = None) -> Examples:
        return self.training(model, seed + HELD_OUT_SEED)


@dataclass(frozen=True)
class JsonlData:
    """A folder of pictures with a JSONL file, as `vla.data.annotated` describes it.

    file, validation: the JSONL files. A line's prompt is its prefix; else made of its question;
    else "detect …" its objects; else "caption en". Of several answers each epoch takes another one,
    until all were taken.
    ask: the prompt of examples without a prefix instead, with {question} or {label} in it. lower:
    answers are learned in lower case. few: so many of the file's examples alone, drawn by few_seed.
    """

    file: Path
    validation: Path | None = None
    ask: str | None = None
    lower: bool = False
    few: int | None = None
    few_seed: int = 0

    def __post_init__(self):
        if self.few is not None and self.few < 1:
            raise ValueError(f"data.few is {self.few}; give 1 example or more, or None for all")

    def training(self, model: PaliGemmaConfig, seed: int, room: TextRoom | None = None) -> Examples:
        annotated = read_annotated(self.file)
        if self.few is not None:
            if self.few > len(annotated):
                raise ValueError(
                    f"data.few asks for {self.few} examples, {self.file} has {len(annotated)}"
                )
            chosen = np.random.default_rng(self.few_seed).permutation(len(annotated))[: self.few]
            annotated = tuple(annotated[i] for i in sorted(chosen))
        return self._examples(annotated, model, seed)

    def held_out(
        self, model: PaliGemmaConfig, seed: int, room: TextRoom | None = None
    ) -> Examples | None:
        if self.validation is None:
            return None
        return self._examples(read_annotated(self.validation), model, seed)

    def _examples(
        self, annotated: tuple[Annotated, ...], model: PaliGemmaConfig, seed: int
    ) -> Examples:
        ask = prompt if self.ask is None else partial(asked, template=self.ask)
        for example in annotated:
            ask(example)
            if not (example.suffixes or example.objects):
                raise ValueError(
                    f"{example.where}: expected a suffix or objects to answer with; captions and "
                    "snippets are for the parts of a MixtureData"
                )
        size, resize = model.resolution, model.numerics.resize
        return AnnotatedExamples(annotated, size, resize, seed, self.lower, ask)


def prompt(example: Annotated) -> str:
    """What is asked of an example: see `JsonlData`."""
    if example.prefix is not None:
        return example.prefix
    if example.question is not None:
        return tasks.answer(example.question)
    if example.objects:
        return tasks.detect(sorted({o.label for o in example.objects}))
    return tasks.caption()


def asked(example: Annotated, template: str) -> str:
    """`template` with the example's question or the label of its object; its prefix goes before.

    Raises ValueError, naming the line, if the example has no such thing.
    """
    if example.prefix is not None:
        return example.prefix
    if "{question}" in template and example.question is None:
        raise ValueError(f'{example.where}: expected "question", or "prefix", the whole prompt')
    if "{label}" in template and len(example.objects) != 1:
        raise ValueError(f'{example.where}: expected one object, or "prefix", the whole prompt')
    label = example.objects[0].label if example.objects else ""
    return template.replace("{question}", example.question or "").replace("{label}", label)


@dataclass(frozen=True)
class AnnotatedExamples:
    """Examples in an order of their own for every epoch, pictures resized as they are asked for.

    size, resize: as in `backbone.image.prepare`. lower: answers in lower case. ask: their prompts.
    """

    annotated: tuple[Annotated, ...]
    size: int
    resize: Resize
    seed: int = 0
    lower: bool = False
    ask: Callable[[Annotated], str] = prompt

    def __getitem__(self, position: int) -> TextExample:
        count = len(self.annotated)
        [index] = sample_indices(self.seed, [position], count)
        example = self.annotated[index]
        answer = self._answer(example, index, position // count)
        shape = partial(prepare, size=self.size, resize=self.resize)
        images = np.stack([shape(image) for image in example.read_images()])
        return TextExample(images, self.ask(example), answer.lower() if self.lower else answer)

    def _answer(self, example: Annotated, index: int, epoch: int) -> str:
        if not example.suffixes:
            return detection_answer([_detection(example, k) for k in range(len(example.objects))])
        count = len(example.suffixes)
        order = stream(self.seed, CHOICE, index + epoch // count * len(self.annotated))
        return example.suffixes[order.permutation(count)[epoch % count]]


def _detection(example: Annotated, k: int) -> Detection:
    thing, (width, height) = example.objects[k], example.size
    return Detection(thing.label, Box.from_pixels(*thing.box, (height, width)))
