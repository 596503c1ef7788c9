"""Train a small PaliGemma on all its tasks about tabletop scenes, and its mask codec before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from backbone.mask_codec import CODEC, SMALL_MASK_CODEC, MaskCodec, cut
from backbone.mask_codec_training import train
from backbone.weights import save_weights
from envs.tabletop.scene import STANDARD, sample_scene
from envs.tabletop.truth import boxes, masks
from vla.data.examples import Examples
from vla.data.tabletop_vlm import MASK_SIZE, TabletopVLM, rounded
from vla.training.job import Job
from vla.training.sampler import HELD_OUT_SEED
from vla.training.text_job import TextConfig
from vla.training.world import ALONE, World

CODEC_BATCH = 32


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
            losses = train(codec, _masks(self.seed), self.codec_steps, generator)
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


def _masks(seed: int) -> Iterator[Tensor]:
    """Endless batches of things' masks within their boxes, rounded as the model's answers are."""
    rng = np.random.default_rng((seed, HELD_OUT_SEED))
    parts: list[np.ndarray] = []
    while True:
        scene = sample_scene(rng, STANDARD).with_random_gripper(rng)
        whole = boxes(scene, "top")
        parts += [cut(m, rounded(whole[n])) for n, m in masks(scene, "top", MASK_SIZE).items()]
        if len(parts) >= CODEC_BATCH:
            yield torch.from_numpy(np.stack(parts[:CODEC_BATCH]))
            parts = parts[CODEC_BATCH:]
