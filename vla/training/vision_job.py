"""Teach a small image encoder what lies where, before a language model reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from backbone.initialise import in_order
from backbone.siglip import SigLIP, SigLIPConfig
from backbone.sources.headers import WEIGHTS
from backbone.weights import save_weights
from vla.config import RunConfig
from vla.data.tabletop_places import NAMES, Places, TabletopPlaces
from vla.data.tabletop_vlm import BINS
from vla.training.job import Job, Microbatch
from vla.training.sampler import HELD_OUT_SEED, shares
from vla.training.start import drawn
from vla.training.world import ALONE, World


class PlaceNames(nn.Module):
    """An image encoder and linear heads that tell what lies at a patch, and its box."""

    def __init__(self, config: SigLIPConfig):
        super().__init__()
        self.vision = SigLIP(config)
        self.head = nn.Linear(config.width, len(NAMES))
        self.corners = nn.Linear(config.width, 4 * BINS)

    def forward(self, places: Places) -> Tensor:
        """Mean over things of the cross-entropy of their names and that of their boxes'
        coordinates, each the mean of four. A scalar."""
        features = self.vision(places.images.to(self.head.weight.dtype) / 127.5 - 1)
        things = features[places.row, places.patch]
        corners = rearrange(self.corners(things), "k (c b) -> k b c", c=4)
        parts = (places.box * BINS).long().clamp(max=BINS - 1)
        return F.cross_entropy(self.head(things), places.name) + F.cross_entropy(corners, parts)


@dataclass(frozen=True, kw_only=True)
class VisionConfig(RunConfig):
    """An image encoder trained from nothing on tabletop scenes; the result, a folder `vision`, is
    what `TextConfig.vision` starts from. The heads are left behind.

    standard: share of crowded scenes.
    """

    model: SigLIPConfig
    cameras: tuple[str, ...] = ("top", "wrist")
    standard: float = 0.5

    def job(self, world: World = ALONE) -> Job:
        with torch.device("meta"):
            model = PlaceNames(self.model)
        size = self.model.resolution
        scenes = TabletopPlaces(
            size, size // self.model.patch, self.cameras, self.seed, self.standard
        )
        unseen = replace(scenes, seed=self.seed + HELD_OUT_SEED)

        def microbatches(source: TabletopPlaces, step: int, world: World) -> list[Microbatch]:
            parts = shares(step, self.batch_size, self.accumulate, world)
            return [Microbatch((source.batch(part),), len(part), part) for part in parts]

        def save(model: nn.Module, folder: Path) -> None:
            assert isinstance(model, PlaceNames)
            save_weights(model.vision, folder / WEIGHTS)

        def held_out() -> Iterator[Microbatch]:
            for step in range(self.eval_batches):
                yield from microbatches(unseen, step, ALONE)

        return Job(
            model,
            batch=lambda step: microbatches(scenes, step, world),
            save=save,
            held_out=held_out,
            result="vision",
            start=lambda outline: in_order(drawn(outline, self.seed), self.model),
        )
