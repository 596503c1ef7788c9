"""Teach a small image encoder what lies where, before a language model reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    """An image encoder and linear heads that tell what lies at a patch, its box, and how many
    things have their centre in it: none, one or more.

    centres: weight of the loss of the last; it has every patch's features say whether there is a
    thing to count.
    """

    def __init__(self, config: SigLIPConfig, centres: float = 0.0):
        super().__init__()
        self.vision = SigLIP(config)
        self.head = nn.Linear(config.width, len(NAMES))
        self.corners = nn.Linear(config.width, 4 * BINS)
        self.number = nn.Linear(config.width, 3) if centres else None
        self.centres = centres

    def forward(self, places: Places) -> Tensor:
        """Mean over things of the cross-entropy of their names and that of their boxes'
        coordinates, each the mean of four; and over patches of that of the number of centres,
        times `centres`. A scalar."""
        features = self.vision(places.images.to(self.head.weight.dtype) / 127.5 - 1)
        patch = self._patch(places)
        things = features[places.row, patch]
        corners = rearrange(self.corners(things), "k (c b) -> k b c", c=4)
        parts = (places.box * BINS).long().clamp(max=BINS - 1)
        loss = F.cross_entropy(self.head(things), places.name) + F.cross_entropy(corners, parts)
        if self.number is None:
            return loss
        number = places.row.new_zeros(features.shape[:2])
        number.index_put_((places.row, patch), torch.ones_like(patch), accumulate=True)
        of_patches = self.number(features).flatten(0, 1)
        return loss + self.centres * F.cross_entropy(of_patches, number.clamp(max=2).flatten())

    def _patch(self, places: Places) -> Tensor:
        """That a thing's centre is in: [K]."""
        side = self.vision.config.resolution // self.vision.config.patch
        row, column = ((at * side).long().clamp(max=side - 1) for at in (places.y, places.x))
        return row * side + column


@dataclass(frozen=True, kw_only=True)
class VisionConfig(RunConfig):
    """An image encoder trained from nothing on tabletop scenes; the result, a folder `vision`, is
    what `TextConfig.vision` starts from. The heads are left behind.

    centres: weight of the loss of how many things each patch holds; see `PlaceNames`.
    """

    model: SigLIPConfig
    cameras: tuple[str, ...] = ("top", "wrist")
    centres: float = 0.0

    def job(self, world: World = ALONE) -> Job:
        with torch.device("meta"):
            model = PlaceNames(self.model, self.centres)
        scenes = TabletopPlaces(self.model.resolution, self.cameras, self.seed)
        unseen = TabletopPlaces(self.model.resolution, self.cameras, self.seed + HELD_OUT_SEED)

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
