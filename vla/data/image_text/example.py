"""One picture, or several, with what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from vla.data.annotated import Annotated
from vla.data.augment import Window


@dataclass(frozen=True)
class Thing:
    """label: what it is called. box: (x0, y0, x1, y1) in pixels. read_mask: bool [H, W] of the
    picture's size, where there is one.
    """

    label: str
    box: tuple[float, float, float, float]
    read_mask: Callable[[], np.ndarray] | None = None

    def cropped(self, window: Window) -> Thing | None:
        """As it stands in a piece of the picture; None where it is not to be seen there."""
        box, read = window.moved(self.box), self.read_mask
        if box is None:
            return None
        return Thing(self.label, box, None if read is None else lambda: window.of(read()))


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

    def cropped(self, windows: Sequence[Window]) -> ImageText:
        """A piece of each picture; boxes and masks move with the first one's.

        Things that the piece doesn't show are left out; where these are all, the first picture
        stays whole. Raises ValueError where a text holds places, `<loc>`, which can't be moved.
        """
        texts = (self.prefix, self.question, *self.suffixes, *sum(self.captions.values(), ()))
        if any(text and "<loc" in text for text in texts):
            raise ValueError(
                f"{self.where}: a text holds <loc>, a place that doesn't follow a crop; give its "
                'part augment=Augment(crop=0), or the places as "objects"'
            )
        things = tuple(t for thing in self.things if (t := thing.cropped(windows[0])))
        if self.things and not things:
            things, windows = self.things, [Window(0, 0, *self.size), *windows[1:]]
        pieces = tuple(w.of(p) for w, p in zip(windows, self.pictures, strict=True))
        return replace(self, pictures=pieces, things=things)


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
    return replace(told(annotated), pictures=tuple(annotated.read_images()))


def told(annotated: Annotated) -> ImageText:
    """A line of a JSONL file without its pictures, for looking at its texts alone."""
    things = tuple(
        Thing(o.label, o.box, o.read_mask if o.mask is not None else None)
        for o in annotated.objects
        if not o.crowd
    )
    return ImageText(
        (),
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
