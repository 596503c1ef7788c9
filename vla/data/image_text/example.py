"""One picture, or several, with what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vla.data.annotated import Annotated


@dataclass(frozen=True)
class Thing:
    """label: what it is called. box: (x0, y0, x1, y1) in pixels. read_mask: bool [H, W] of the
    picture's size, where there is one.
    """

    label: str
    box: tuple[float, float, float, float]
    read_mask: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True)
class ImageText:
    """An example, read. The texts are those of a line of `vla.data.annotated`.

    pictures: uint8 RGB [H, W, 3] each, at least one; a film's frames. where: names it in messages.
    """

    pictures: tuple[np.ndarray, ...]
    where: str
    prefix: str | None = None
    question: str | None = None
    suffixes: tuple[str, ...] = ()
    lang: str | None = None
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    snippets: tuple[str, ...] = ()
    things: tuple[Thing, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first picture, pixels."""
        height, width = self.pictures[0].shape[:2]
        return height, width


class ImageTexts(Protocol):
    """A source's examples, by number; the same number always gives the same.

    window: read nearly in order: None, where any order is as good, else examples are shuffled
    within so many alone.
    """

    @property
    def window(self) -> int | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ImageText: ...


class Source(Protocol):
    """What a config says of where examples lie."""

    def open(self) -> ImageTexts:
        """Raises ValueError or FileNotFoundError where they can't be read."""
        ...


def image_text(annotated: Annotated) -> ImageText:
    """A line of a JSONL file with its pictures read."""
    things = tuple(
        Thing(o.label, o.box, o.read_mask if o.mask is not None else None)
        for o in annotated.objects
        if not o.crowd
    )
    return ImageText(
        tuple(annotated.read_images()),
        annotated.where,
        annotated.prefix,
        annotated.question,
        annotated.suffixes,
        annotated.lang,
        annotated.captions,
        annotated.snippets,
        things,
        annotated.absent,
    )
