"""What is asked of an example, and what is answered: PaliGemma's grammar (arXiv 2407.07726, 3.2.5).

A format is a frozen dataclass; called with an example and a `Draw`, it gives an `Asked`. Whatever
is random follows from the draw. A format refuses an example that lacks what it asks about with a
ValueError that names the example.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from backbone import tasks
from backbone.detections import SEPARATOR, Box, Detection, check_name, detection_answer
from backbone.mask_codec import MaskCodec, codec_beside, cut, load_codec
from vla.data.image_text.draw import Draw
from vla.data.image_text.example import ImageText, Thing

__all__ = [
    "FORMATS",
    "NOISE",
    "Answer",
    "Asked",
    "Caption",
    "Detect",
    "Format",
    "ObjectQuestion",
    "Ocr",
    "Prefixed",
    "Question",
    "Refer",
    "Region",
    "Segment",
    "named",
]

NOISE = "<noise>"  # PaliGemma 2 (arXiv 2412.03555, appendix C): the class of boxes of nothing
KINDS = ("list", "present", "which", "count")


@dataclass(frozen=True)
class Asked:
    """prompt, answer: texts. silent: pieces of the answer, (start, end), that are not learned,
    whole runs of `<loc>`.
    """

    prompt: str
    answer: str
    silent: tuple[tuple[int, int], ...] = ()


class Format(Protocol):
    def __call__(self, example: ImageText, draw: Draw, /) -> Asked: ...


@dataclass(frozen=True)
class Prefixed:
    """The example's own prompt, its prefix; every epoch another one of its suffixes.

    template: the prompt of an example without a prefix, with {question}, or {label}, that of its
    only object, in it. lower: answers in lower case.
    """

    template: str | None = None
    lower: bool = False

    def __call__(self, example: ImageText, draw: Draw) -> Asked:
        answer = draw.one_of(_needed(example.suffixes, "suffixes", example))
        return Asked(self.prompt(example), answer.lower() if self.lower else answer)

    def prompt(self, example: ImageText) -> str:
        """Looks at texts alone. Raises ValueError where what the template names is missing."""
        if self.template is None or example.prefix is not None:
            return _needed(example.prefix, "prefix", example)
        if "{question}" in self.template and example.question is None:
            raise ValueError(f'{example.where}: expected "question", or "prefix", the whole prompt')
        prompt = self.template.replace("{question}", example.question or "")
        if "{label}" not in prompt:
            return prompt
        if len(example.things) != 1:
            raise ValueError(f'{example.where}: expected one object, or "prefix", the whole prompt')
        return prompt.replace("{label}", example.things[0].label)


@dataclass(frozen=True)
class Caption:
    """`caption {lang}`. langs: of an example's captions those in these languages; None: all it has.
    Every epoch takes another language and another caption, until all were taken. A suffix is a
    caption in the example's `lang`, or in English. word: "cap" for raw texts of the web,
    "describe" for long ones.
    """

    langs: tuple[str, ...] | None = None
    word: Literal["caption", "cap", "describe"] = "caption"

    def __post_init__(self):
        for lang in self.langs or ():
            tasks.check_language(lang)

    def __call__(self, example: ImageText, draw: Draw) -> Asked:
        captions = dict(example.captions)
        if example.suffixes:
            captions.setdefault(example.lang or "en", example.suffixes)
        if self.langs is not None:
            captions = {lang: captions[lang] for lang in self.langs if lang in captions}
            if not captions:
                raise ValueError(
                    f"{example.where}: no caption in {', '.join(self.langs)}; leave the example "
                    "out, or name its languages"
                )
        lang = draw.one_of(tuple(_needed(captions, "captions or suffixes", example)))
        prompt = {"caption": tasks.caption, "cap": tasks.cap, "describe": tasks.describe}[self.word]
        return Asked(prompt(lang), draw.one_of(captions[lang], after=len(captions)))


@dataclass(frozen=True)
class Ocr:
    """`ocr`: all texts in the picture, row by row, `between` them (unpublished; ours is a newline).
    Where they don't fit into the row, as few as need be are left out, drawn at random.
    """

    between: str = "\n"

    def __call__(self, example: ImageText, draw: Draw) -> Asked:
        snippets, prompt = _needed(example.snippets, "snippets", example), tasks.ocr()
        order = draw.rng.permutation(len(snippets))

        def without(dropped: int) -> str:
            kept = sorted(order[dropped:])
            return self.between.join(snippets[i] for i in kept)

        low, high = 0, len(snippets) - 1  # the last one stays, cut if it must be
        while low < high:
            middle = (low + high) // 2
            if draw.fits(prompt, without(middle)):
                high = middle
            else:
                low = middle + 1
        return Asked(prompt, without(low))


@dataclass(frozen=True)
class Answer:
    """`answer {lang} {question}`; every epoch another answer, until all were taken."""

    def __call__(self, example: ImageText, draw: Draw) -> Asked:
        question = _needed(example.question, "question", example)
        answer = draw.one_of(_needed(example.suffixes, "suffixes", example))
        return Asked(tasks.answer(question, example.lang or "en"), answer)


@dataclass(frozen=True)
class Question:
    """`question {lang} {answer}`: what was asked. lang: of the question."""

    lang: str = "en"

    def __post_init__(self):
        tasks.check_language(self.lang)

    def __call__(self, example: ImageText, draw: Draw) -> Asked:
        answer = draw.one_of(_needed(example.suffixes, "suffixes", example))
        question = _needed(example.question, "question", example)
        return Asked(tasks.question(answer, self.lang), question)


@dataclass(frozen=True)
class Detect:
    """`detect cat ; dog`: boxes of all things with these labels.

    order: of the things; "given", as the example has them, or "random". most: ask for so many
    labels, drawn at random; None: all. prompt: a fixed one instead, with all labels answered.
    noise: fill up to so many boxes with random ones of the class `NOISE`, whose coordinates are not
    learned: with prompt="detect all classes" and order="random" PaliGemma 2's detection transfer.
    """

    order: Literal["given", "random"] = "random"
    most: int | None = None
    prompt: str | None = None
    noise: int = 0

    def __call__(self, example: ImageText, draw: Draw) -> Asked:
        labels, things = _chosen(example, draw, self.order, self.most)
        found = [Detection(t.label, _box(t, example)) for t in things]
        answer = detection_answer(found)
        prompt = tasks.detect(labels) if self.prompt is None else self.prompt
        silent = []
        for _ in range(self.noise - len(things)):
            box = _random_box(draw.rng)
            answer += SEPARATOR if answer else ""
            silent.append((len(answer), len(answer) + len(box.text())))
            answer += f"{box.text()} {NOISE}"
        return Asked(prompt, answer, tuple(silent))


@dataclass(frozen=True)
class Segment:
    """`segment cat ; dog`: boxes and mask codes. codec: the mask codec's file, or the folder of a
    model that has one beside it. order, most: as in `Detect`.
    """

    codec: Path
    order: Literal["given", "random"] = "random"
    most: int | None = None

    def __call__(self, example: ImageText, draw: Draw) -> Asked:
        labels, things = _chosen(example, draw, self.order, self.most)
        found = [
            Detection(thing.label, _box(thing, example), codes)
            for thing, codes in zip(things, _codes(self.codec, things, example), strict=True)
        ]
        return Asked(tasks.segment(labels), detection_answer(found))


@dataclass(frozen=True)
class Refer:
    """RefCOCO's: what an object is called, alone → its `<loc>`×4 and `<seg>`×16, no name.

    Of several objects every epoch asks for another one. An example that has suffixes is answered
    with these, and may have a prefix as its prompt. codec: as in `Segment`.
    """

    codec: Path

    def __call__(self, example: ImageText, draw: Draw) -> Asked:
        if example.suffixes:
            return Asked(self.prompt(example), draw.one_of(example.suffixes))
        thing = draw.one_of(_needed(example.things, "objects", example))
        [codes] = _codes(self.codec, [thing], example)
        answer = detection_answer([Detection("", _box(thing, example), codes)])
        return Asked(example.prefix or thing.label, answer)

    def prompt(self, example: ImageText) -> str:
        """Of the first object; looks at texts alone."""
        if example.prefix is not None:
            return example.prefix
        return _needed(example.things, "objects", example)[0].label


@dataclass(frozen=True)
class Region:
    """`caption <loc>×4`: what is in the box; every epoch another one of the example's things."""

    def __call__(self, example: ImageText, draw: Draw) -> Asked:
        thing = draw.one_of(_needed(example.things, "objects", example))
        return Asked(tasks.caption_region(_box(thing, example)), thing.label)


@dataclass(frozen=True)
class ObjectQuestion:
    """The questions that were made of OpenImages' labels, one of `kinds` each time.

    list: what objects are there? present: is there a …, half of the times one of `absent`, where
    the example has those. which: which of …? of all labels and as many that are absent. count: how
    many …?
    """

    kinds: tuple[Literal["list", "present", "which", "count"], ...] = KINDS

    def __post_init__(self):
        if not self.kinds or any(kind not in KINDS for kind in self.kinds):
            raise ValueError(f"kinds are {self.kinds}; there are {', '.join(KINDS)}")

    def __call__(self, example: ImageText, draw: Draw) -> Asked:
        rng, labels = draw.rng, sorted({t.label for t in example.things})
        _needed(labels, "objects", example)
        match self.kinds[rng.integers(len(self.kinds))]:
            case "list":
                return Asked(tasks.list_objects(), tasks.names_answer(labels))
            case "present":
                there = not example.absent or rng.random() < 0.5
                among = labels if there else example.absent
                name = among[rng.integers(len(among))]
                return Asked(tasks.is_present(name), tasks.presence_answer(there))
            case "which":
                few = rng.permutation(example.absent)[: len(labels)].tolist()
                names = rng.permutation([*labels, *few]).tolist()
                there = [name for name in names if name in labels]
                return Asked(tasks.which_present(names), tasks.names_answer(there))
            case _:
                name = labels[rng.integers(len(labels))]
                count = sum(t.label == name for t in example.things)
                return Asked(tasks.how_many(name), tasks.count_answer(count))


AnyFormat = (
    Prefixed
    | Caption
    | Ocr
    | Answer
    | Question
    | Detect
    | Segment
    | Refer
    | Region
    | ObjectQuestion
)

# By the words that begin their prompts.
FORMATS: dict[str, type[AnyFormat]] = {
    "prefixed": Prefixed,
    "caption": Caption,
    "ocr": Ocr,
    "answer": Answer,
    "question": Question,
    "detect": Detect,
    "segment": Segment,
    "refer": Refer,
    "region": Region,
    "objects": ObjectQuestion,
}


def named(task: str) -> AnyFormat:
    """The format of this name, as it stands.

    Raises ValueError for an unknown task, with the nearest one, and for one that needs options.
    """
    if task not in FORMATS:
        close = difflib.get_close_matches(task, FORMATS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown task {task!r}; {hint}there are {', '.join(FORMATS)}")
    if FORMATS[task] in (Segment, Refer):
        name = FORMATS[task].__name__
        raise ValueError(f"{task!r} needs options; give the format itself: {name}(codec=…)")
    return FORMATS[task]()  # pyright: ignore[reportCallIssue]


def _needed[T](value: T | None, name: str, example: ImageText) -> T:
    if not value:
        raise ValueError(f"{example.where}: this task needs {name}, and the example has none")
    return value


def _chosen(
    example: ImageText, draw: Draw, order: str, most: int | None
) -> tuple[list[str], list[Thing]]:
    """The labels to ask for and the things to answer with."""
    things = list(_needed(example.things, "objects", example))
    for thing in things:
        try:
            check_name(thing.label)
        except ValueError as error:
            raise ValueError(f"{example.where}: {error}") from error
    labels = list(dict.fromkeys(thing.label for thing in things))
    if most is not None and len(labels) > most:
        kept = sorted(draw.rng.permutation(len(labels))[:most])
        labels = [labels[i] for i in kept]
    if order == "random":
        labels = draw.rng.permutation(labels).tolist()
        things = [things[i] for i in draw.rng.permutation(len(things))]
    return labels, [thing for thing in things if thing.label in labels]


def _box(thing: Thing, example: ImageText) -> Box:
    return Box.from_pixels(*thing.box, example.size)


def _codes(codec: Path, things: list[Thing], example: ImageText) -> list[tuple[int, ...]]:
    """The mask codes of these things."""
    parts = []
    for thing in things:
        if thing.read_mask is None:
            raise ValueError(f"{example.where}: {thing.label!r} has no mask to segment")
        mask = thing.read_mask()
        if mask.shape != example.size:
            raise ValueError(
                f"{example.where}: the mask of {thing.label!r} has {list(mask.shape)} pixels, "
                f"the picture {list(example.size)}"
            )
        parts.append(cut(mask, _box(thing, example)))
    with torch.no_grad():
        codes = _codec(codec).encode(torch.from_numpy(np.stack(parts))).tolist()
    return [tuple(each) for each in codes]


def _random_box(rng: np.random.Generator) -> Box:
    """Two corners drawn evenly, so that every box is at least a `<loc>` wide and high."""
    x0, x1, y0, y1 = (
        edge / 1023
        for _ in range(2)
        for edge in sorted(rng.choice(1024, 2, replace=False).tolist())
    )
    return Box(x0, y0, x1, y1)


@lru_cache(maxsize=2)
def _codec(path: Path) -> MaskCodec:
    file = codec_beside(path) if path.is_dir() else path
    if file is None:
        raise ValueError(f"no mask codec beside {path}; give its file, such as vae-oid.npz")
    return load_codec(file).eval()
