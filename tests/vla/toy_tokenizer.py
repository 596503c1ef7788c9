"""The tokenizer of the stored LeRobot vectors: one id per character."""

import json
from pathlib import Path
from typing import cast

from backbone.tokenizer import Tokenizer


class Characters:
    """What a processor asks of a tokenizer."""

    pad, bos = 0, 2

    def __init__(self, file: Path):
        self._ids: dict[str, int] = json.loads(file.read_text())["model"]["vocab"]
        self.vocab_size = len(self._ids)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        ids = [self._ids.get(c, self._ids["<unk>"]) for c in text.replace(" ", "▁")]
        return [self.bos] * bos + ids

    def prefix(self, text: str) -> list[int]:
        return self.encode(text + "\n", bos=True)


def characters(file: Path) -> Tokenizer:
    return cast(Tokenizer, Characters(file))
