"""Where a stage's examples come from: endless streams of pictures, prompts and answers.

`TabletopData` makes them; `vla.data.image_text.mixture.MixtureData` reads files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backbone.mask_codec import load_codec
from backbone.paligemma import PaliGemmaConfig
from vla.data.tabletop_vlm import SHARES, TabletopVLM
from vla.data.text import TextExample, TextRoom
from vla.training.sampler import HELD_OUT_SEED

__all__ = ["Examples", "Source", "TabletopData"]


class Examples(Protocol):
    """An endless stream; what stands at a position is always the same."""

    def __getitem__(self, position: int, /) -> TextExample: ...


class Source(Protocol):
    """What a config says of its data."""

    @property
    def codec(self) -> Path | None:
        """The mask codec that answers are written with; None where they hold no masks."""
        ...

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

    shares: of the tasks; they sum to 1. easy: share of scenes of the easier level. codec: the mask
    codec's file, for "segment".
    """

    shares: tuple[tuple[str, float], ...] = (
        ("locate", 0.3),
        ("detect", 0.2),
        ("question", 0.35),
        ("caption", 0.15),
    )
    easy: float = 0.5
    codec: Path | None = None

    def __post_init__(self):
        unknown = [name for name, _ in self.shares if name not in SHARES]
        if unknown:
            raise ValueError(
                f"unknown task {unknown[0]!r} in shares; there are {', '.join(SHARES)}"
            )
        if self.codec is None and dict(self.shares).get("segment"):
            raise ValueError(
                'shares ask for "segment" but codec names no mask codec; give one, such as '
                "vla.assets.MASK_CODEC_TABLETOP"
            )
        if abs(sum(share for _, share in self.shares) - 1) > 1e-6:
            raise ValueError(f"the shares {dict(self.shares)} don't sum to 1")

    def training(self, model: PaliGemmaConfig, seed: int, room: TextRoom | None = None) -> Examples:
        codec = None if self.codec is None else load_codec(self.codec)
        return TabletopVLM(model.resolution, codec, seed, self.easy, dict(self.shares))

    def held_out(self, model: PaliGemmaConfig, seed: int, room: TextRoom | None = None) -> Examples:
        return self.training(model, seed + HELD_OUT_SEED)
