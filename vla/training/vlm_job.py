"""Train a small PaliGemma on all its tasks about tabletop scenes, and its mask codec before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from backbone.mask_codec import CODEC, SMALL_MASK_CODEC, MaskCodec
from backbone.mask_codec_training import train
from backbone.weights import save_weights
from vla.data.examples import Examples
from vla.data.tabletop_masks import thing_masks
from vla.data.tabletop_vlm import TabletopVLM
from vla.training.job import Job
from vla.training.sampler import HELD_OUT_SEED
from vla.training.text_job import TextConfig
from vla.training.world import ALONE, World


@dataclass(frozen=True, kw_only=True)
class VLMConfig(TextConfig):
    """A PaliGemma trained on captions, questions, boxes and masks of one camera's pictures.

    The mask codec is trained first, for `codec_steps` batches of masks of other scenes, and saved
    beside the model as mask_codec.safetensors. For `seeing` steps all examples are "locate
    everything" in easy scenes; the other tasks and crowded scenes come in over `ramp` steps.
    """

    cameras: tuple[str, ...] = ("top",)
    codec_steps: int = 1200

    def job(self, world: World = ALONE) -> Job:
        inner = super().job(world)

        def save(model: nn.Module, folder: Path) -> None:
            inner.save(model, folder)
            save_weights(self.codec, folder / CODEC)

        return replace(inner, save=save)

    @cached_property
    def codec(self) -> MaskCodec:
        """Trained when it is first asked for; a pure function of the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            codec = MaskCodec(SMALL_MASK_CODEC)
            generator = torch.Generator().manual_seed(self.seed)
            losses = train(codec, thing_masks(self.seed), self.codec_steps, generator)
            bar = tqdm(losses, "mask codec", self.codec_steps)
            for loss in bar:
                bar.set_postfix(loss=f"{float(loss.reconstruction):.3f}", codes=loss.used)
        return codec.eval().requires_grad_(False)

    def unseen(self) -> Examples:
        seed = self.seed + HELD_OUT_SEED
        return TabletopVLM(self.model.resolution, self.codec, seed)

    def scenes(self, step: int) -> Examples:
        all_tasks = TabletopVLM(self.model.resolution, self.codec, self.seed)
        mixed = min(max((step - self.seeing) / max(self.ramp, 1), 0.0), 1.0)
        shares = {task: mixed * share for task, share in all_tasks.shares.items()}
        shares["locate"] += 1 - mixed
        return replace(all_tasks, easy=1 - mixed * (1 - all_tasks.easy), shares=shares)
