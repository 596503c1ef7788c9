"""What the files of a PaliGemma say, whoever wrote them, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from backbone.sources.places import Weights
from backbone.sources.sizes import Stack, Vision

VOCAB = 257_152  # real ids; Hugging Face's files have 64 rows more that were never trained
TOKENIZERS = ("tokenizer.model", "tokenizer.json")
CONFIG = "config.json"
Origin = Literal["vla", "Hugging Face", "big_vision"]


@dataclass(frozen=True)
class PaliGemmaFiles:
    """A PaliGemma's folder or file, read but for its weights.

    path: the folder, or the .npz file. weights: under the names of `backbone.paligemma.PaliGemma`.
    gemma2: fields of `GemmaConfig` that Gemma 2 adds, empty for Gemma 1. numerics, design: the
    fields of a `Numerics`, where the folder holds some (else the origin's own), and of a `Design`.
    """

    origin: Origin
    path: Path
    weights: Weights
    vision: Vision
    language: Stack
    vocab: int
    gemma2: Mapping[str, Any] = field(default_factory=dict)
    numerics: Mapping[str, Any] | None = None
    design: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def tokenizer(self) -> Path | None:
        """The folder, if it holds one."""
        if any((self.folder / name).is_file() for name in TOKENIZERS):
            return self.folder
        return None
