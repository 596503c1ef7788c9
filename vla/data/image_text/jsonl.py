"""Examples of a JSONL file with pictures beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla.data.annotated import Annotated, read_annotated
from vla.data.image_text.example import ImageText, image_text


@dataclass(frozen=True)
class Jsonl:
    """file: as in `vla.data.annotated`, or the folder that holds it. All lines are checked at once,
    pictures are read as they are asked for.
    """

    file: Path

    def open(self) -> Lines:
        return Lines(read_annotated(self.file))


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
