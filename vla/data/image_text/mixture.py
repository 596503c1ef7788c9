"""Sources with weights as one endless stream: what stands at a position is a pure function of it.

Positions come in blocks. Of the first n blocks' positions source s has exactly
⌊n·M·(w₁ + … + w_s)⌋ − ⌊n·M·(w₁ + … + w_{s−1})⌋, which is n·M·w_s to within one; within a block the
sources stand in random order. So the k-th example of a source can be told from a position alone,
and a run that is stopped goes on with no state. Each source is read in a fresh order every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import ceil, floor
from pathlib import Path

import numpy as np
from tyro.conf import AvoidSubcommands, Fixed

from backbone.image import prepare
from backbone.numerics import Resize
from backbone.paligemma import PaliGemmaConfig
from vla.data.augment import Augment
from vla.data.image_text.draw import Draw
from vla.data.image_text.example import ImageTexts
from vla.data.image_text.formats import AnyFormat, Format, Refer, Segment, named
from vla.data.image_text.frames import Frames
from vla.data.image_text.hugging_face import HuggingFace
from vla.data.image_text.jsonl import Jsonl
from vla.data.image_text.tars import Tars
from vla.data.text import TextExample, TextRoom
from vla.training.sampler import MIXING, ORDER, stream

__all__ = ["Mixture", "MixtureData", "Opened", "Part", "Turns", "source_seed"]

BLOCK = 256  # positions, unless a source is so rare that it wouldn't occur in each
VALIDATION = 1_000_000  # added to the seed


@dataclass(frozen=True)
class Part:
    """A source, what is asked of it, and its weight among the others.

    name: in reports. ask: a format, or the name of one as it stands, such as "ocr". validation: a
    source of examples that are never trained on. frames: for films. augment: instead of the
    mixture's.
    """

    name: str
    source: Jsonl | Tars | HuggingFace
    ask: AnyFormat | str
    weight: float = 1.0
    validation: Jsonl | Tars | HuggingFace | None = None
    frames: Frames | None = None
    augment: Augment | None = None

    def __post_init__(self):
        if isinstance(self.ask, str):
            object.__setattr__(self, "ask", named(self.ask))
        if not self.weight >= 0 or self.weight == float("inf"):
            raise ValueError(f"the weight of {self.name!r} is {self.weight}; it is 0 or more")

    @property
    def format(self) -> AnyFormat:
        """What is asked."""
        assert not isinstance(self.ask, str)
        return self.ask


@dataclass(frozen=True)
class MixtureData:
    """What a stage learns from: parts, and how their pictures are changed, if they are.

    weights: (name, weight) pairs that take the place of the parts' own, as a stage does that shows
    the same data in other shares; a part that isn't named keeps its own.
    """

    parts: Fixed[tuple[Part, ...]]  # not on the command line, where `weights` may be given
    augment: AvoidSubcommands[Augment | None] = None
    weights: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        names = [part.name for part in self.parts]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two parts are named {twice[0]!r}; give each a name of its own")
        for name, _ in self.weights:
            if name not in names:
                raise ValueError(f"weights name no part {name!r}; there are {', '.join(names)}")

    @property
    def codec(self) -> Path | None:
        """The mask codec of the first part that needs one."""
        asked = (part.format for part in self.parts)
        return next((ask.codec for ask in asked if isinstance(ask, Segment | Refer)), None)

    def training(self, model: PaliGemmaConfig, seed: int, room: TextRoom | None = None) -> Mixture:
        """Raises ValueError or FileNotFoundError for sources or a mask codec that can't be read."""
        if self.codec is not None and not self.codec.exists():
            raise FileNotFoundError(
                f"no mask codec at {self.codec}, which a part segments with; give vae-oid.npz, or "
                "leave the part out"
            )
        weights = {part.name: part.weight for part in self.parts} | dict(self.weights)
        opened = [
            Opened(
                part.name,
                part.source.open(),
                part.format,
                part.frames,
                part.augment or self.augment,
            )
            for part in self.parts
            if weights[part.name] > 0
        ]
        shown = [weights[part.name] for part in opened]
        return Mixture(opened, shown, model.resolution, model.numerics.resize, seed, room)

    def held_out(
        self, model: PaliGemmaConfig, seed: int, room: TextRoom | None = None
    ) -> Mixture | None:
        """All parts' validation sources, weighted alike; None where there are none."""
        opened = [
            Opened(part.name, part.validation.open(), part.format, part.frames)
            for part in self.parts
            if part.validation is not None
        ]
        if not opened:
            return None
        size, resize = model.resolution, model.numerics.resize
        return Mixture(opened, [1.0] * len(opened), size, resize, seed + VALIDATION, room)


@dataclass(frozen=True)
class Opened:
    """A part whose source is open."""

    name: str
    texts: ImageTexts
    ask: Format
    frames: Frames | None = None
    augment: Augment | None = None


@dataclass(frozen=True)
class Turns:
    """Which source stands at a position, and its how-manieth example that is.

    weights: of at least one source, above 0.
    """

    weights: tuple[float, ...]
    seed: int = 0
    ends: tuple[Fraction, ...] = field(init=False)
    block: int = field(init=False)

    def __post_init__(self):
        if not self.weights or not all(w > 0 for w in self.weights):
            raise ValueError(
                f"the weights are {self.weights}; give at least one source a weight above 0"
            )
        total = sum(map(Fraction, self.weights))
        upto = [sum(map(Fraction, self.weights[: s + 1])) for s in range(len(self.weights))]
        ends = [Fraction(end, total) for end in upto]
        rarest = min(map(Fraction, self.weights)) / total
        object.__setattr__(self, "ends", tuple(ends))
        object.__setattr__(self, "block", max(BLOCK, ceil(1 / rarest)))

    def counts(self, blocks: int) -> list[int]:
        """How many positions of the first `blocks` blocks each source has."""
        upto = [0, *(floor(blocks * self.block * end) for end in self.ends)]
        return [b - a for a, b in pairwise(upto)]

    def at(self, position: int) -> tuple[int, int]:
        """(source, k): the k-th example that is taken of the source, from 0."""
        number, within = divmod(position, self.block)
        before, order, ranks = _block(self, number)
        source = int(order[within])
        return source, before[source] + int(ranks[within])


@lru_cache(maxsize=8)
def _block(turns: Turns, number: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    before, after = turns.counts(number), turns.counts(number + 1)
    each = [b - a for a, b in zip(before, after, strict=True)]
    order = np.repeat(np.arange(len(each)), each)
    order = stream(turns.seed, MIXING, number).permutation(order)
    ranks = np.empty(len(order), np.int64)
    for source in range(len(each)):
        at = order == source
        ranks[at] = np.arange(at.sum())
    return before, order, ranks


class Mixture:
    """An endless stream of examples, by position.

    size, resize: of the pictures, as in `backbone.image.prepare`; a part's augmentation resizes in
    its own way. room: what a row of text holds, for formats that fit their answers to it.
    """

    def __init__(
        self,
        parts: Sequence[Opened],
        weights: Sequence[float],
        size: int,
        resize: Resize = "tf",
        seed: int = 0,
        room: TextRoom | None = None,
    ):
        self.parts, self.seed = list(parts), seed
        self._turns = Turns(tuple(weights), seed)
        self._size, self._room = size, room
        self._resize: Resize = resize
        self._orders = [
            Order(source_seed(seed, s), len(part.texts), part.texts.window)
            for s, part in enumerate(self.parts)
        ]

    def place(self, position: int) -> tuple[int, int, int]:
        """(part, index, epoch): whose example, which one, and how often it was read before."""
        part, k = self._turns.at(position)
        order = self._orders[part]
        return part, order.index(k), k // order.count

    def __getitem__(self, position: int) -> TextExample:
        number, index, epoch = self.place(position)
        part = self.parts[number]
        example = part.texts[index]
        seed = source_seed(self.seed, number)
        draw = Draw.at(seed, index, len(part.texts), epoch, self._room)
        if part.frames is not None:
            example = replace(example, pictures=tuple(part.frames(example.pictures)))
        if part.augment is not None and part.augment.crop:
            sizes = (picture.shape[:2] for picture in example.pictures)
            example = example.cropped([part.augment.window(h, w, draw.rng) for h, w in sizes])
        asked = part.ask(example, draw)
        images = np.stack([self._fitted(picture, part, draw.rng) for picture in example.pictures])
        return TextExample(
            images, asked.prompt, asked.answer, asked.silent, part.name, example.where
        )

    def _fitted(self, picture: np.ndarray, part: Opened, rng: np.random.Generator) -> np.ndarray:
        if part.augment is not None:
            return part.augment(picture, self._size, rng)
        return prepare(picture, self._size, self._resize)


class Order:
    """A source's examples in a fresh order every epoch, as `vla.training.sampler.sample_indices`.

    window: shuffle within so many neighbours alone, for sources that are read in order.
    """

    def __init__(self, seed: int, count: int, window: int | None = None):
        if count < 1:
            raise ValueError("a source has no examples")
        self.seed, self.count = seed, count
        self._window = min(window or count, count)
        self._permutation = lru_cache(maxsize=2)(self._shuffled)

    def index(self, k: int) -> int:
        """The example that is read as the k-th, over all epochs."""
        epoch, at = divmod(k, self.count)
        first = at - at % self._window
        return first + int(self._permutation(epoch, first)[at - first])

    def _shuffled(self, epoch: int, first: int) -> np.ndarray:
        windows = -(-self.count // self._window)
        length = min(self._window, self.count - first)
        which = epoch * windows + first // self._window
        return stream(self.seed, ORDER, which).permutation(length)


def source_seed(seed: int, source: int) -> int:
    """A seed of the source's own, so that sources of one length don't go in step."""
    return int(np.random.SeedSequence((seed, source)).generate_state(1, np.uint64)[0])
