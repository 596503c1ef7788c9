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
from vla.data.tabletop_places import COUNTED, COUNTED_NAMES, NAMES, Places, TabletopPlaces
from vla.data.tabletop_vlm import BINS
from vla.training.job import Job, Microbatch
from vla.training.sampler import HELD_OUT_SEED, shares
from vla.training.start import drawn
from vla.training.world import ALONE, World

MOST = 7  # things of one kind that are told apart from more


class PlaceNames(nn.Module):
    """An image encoder and linear heads that tell what lies at a patch, its box, and how many
    things the whole picture holds.

    summary: weight of the loss of the last. The patches in the corners, unless they tell of a
    thing, then tell how many of each of `COUNTED` there are: counting is a look-up like the others.
    Told by every empty patch, or with names, it would drown what a look-up of one thing is after.
    """

    def __init__(self, config: SigLIPConfig, summary: float = 0.0):
        super().__init__()
        self.vision = SigLIP(config)
        self.head = nn.Linear(config.width, len(NAMES))
        self.corners = nn.Linear(config.width, 4 * BINS)
        self.number = nn.Linear(config.width, len(COUNTED) * (MOST + 1)) if summary else None
        self.summary = summary

    def forward(self, places: Places) -> Tensor:
        """Mean over things of the cross-entropy of their names and that of their boxes'
        coordinates, each the mean of four; and, times `summary`, mean over corners with no thing of
        that of the numbers. A scalar."""
        features = self.vision(places.images.to(self.head.weight.dtype) / 127.5 - 1)
        things = features[places.row, places.patch]
        corners = rearrange(self.corners(things), "k (c b) -> k b c", c=4)
        parts = (places.box * BINS).long().clamp(max=BINS - 1)
        loss = F.cross_entropy(self.head(things), places.name) + F.cross_entropy(corners, parts)
        return loss + self.summary * self._summary_loss(features, places)

    def _summary_loss(self, features: Tensor, places: Places) -> Tensor | float:
        if self.number is None:
            return 0.0
        side = self.vision.config.resolution // self.vision.config.patch
        corners = [0, side - 1, side * (side - 1), side**2 - 1]
        free = features.new_ones(features.shape[:2])
        free[places.row, places.patch] = 0
        free = free[:, corners]
        there = features.new_zeros(len(features), len(NAMES))
        there[places.row, places.name] = 1
        numbers = (there @ COUNTED_NAMES.to(there)).long().clamp(max=MOST)
        told = rearrange(self.number(features[:, corners]), "b p (k n) -> b n p k", n=MOST + 1)
        wanted = numbers[:, None].expand(-1, len(corners), -1)
        loss = F.cross_entropy(told, wanted, reduction="none").mean(-1)
        return (loss * free).sum() / free.sum()


@dataclass(frozen=True, kw_only=True)
class VisionConfig(RunConfig):
    """An image encoder trained from nothing on tabletop scenes; the result, a folder `vision`, is
    what `TextConfig.vision` starts from. The heads are left behind.

    summary: weight of the loss of what the whole picture holds; see `PlaceNames`. standard: share
    of crowded scenes.
    """

    model: SigLIPConfig
    cameras: tuple[str, ...] = ("top", "wrist")
    summary: float = 0.0
    standard: float = 0.5

    def job(self, world: World = ALONE) -> Job:
        with torch.device("meta"):
            model = PlaceNames(self.model, self.summary)
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
