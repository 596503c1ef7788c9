"""Examples of a JSONL file with pictures beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla.data.annotated import Annotated, read_annotated
from vla.data.image_text.example import ImageText, image_text


@dataclass(frozen=True)
class Jsonl:
    """file: as in `vla.data.annotated`, or the folder that holds it. All lines are checked at once,
    pictures are read as they are asked for. few: so many of the lines alone, drawn by few_seed.
    """

    file: Path
    few: int | None = None
    few_seed: int = 0

    def __post_init__(self):
        if self.few is not None and self.few < 1:
            raise ValueError(f"few is {self.few}; give 1 example or more, or None for all")

    def open(self) -> Lines:
        lines = read_annotated(self.file)
        if self.few is None:
            return Lines(lines)
        if self.few > len(lines):
            raise ValueError(f"few asks for {self.few} examples, {self.file} has {len(lines)}")
        chosen = np.random.default_rng(self.few_seed).permutation(len(lines))[: self.few]
        return Lines(tuple(lines[i] for i in sorted(chosen)))


@dataclass(frozen=True)
class Lines:
    lines: tuple[Annotated, ...]

    @property
    def window(self) -> None:
        """Any order is as good."""

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> ImageText:
        return image_text(self.lines[index])
