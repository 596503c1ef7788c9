"""Train a small PaliGemma on all its tasks about tabletop scenes, and its mask codec before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from backbone.mask_codec import CODEC, SMALL_MASK_CODEC, MaskCodec, load_codec
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

    The mask codec is trained first, for `codec_steps` batches of masks of other scenes, kept in
    `output_dir` for when the run goes on, and saved beside the model as mask_codec.safetensors.
    For `seeing` steps all examples are "locate everything" in easy scenes; the other tasks and
    crowded scenes come in over `ramp` steps. Each picture is asked for `texts` of them in one row,
    which see the picture and not one another (`backbone.masks.apart`): a picture takes more of a
    step's time than a text does.
    """

    cameras: tuple[str, ...] = ("top",)
    codec_steps: int = 1200
    texts: int = 1

    def job(self, world: World = ALONE) -> Job:
        inner = super().job(world)
        assert inner.start is not None
        first = inner.start

        def start(outline: nn.Module) -> Iterator[tuple[str, Tensor]]:
            codec = self.codec  # before there are worker processes, which share it
            if world.first and not self._kept.is_file():  # one of several processes writes
                self._kept.parent.mkdir(parents=True, exist_ok=True)
                save_weights(codec, self._kept)
            yield from first(outline)

        def save(model: nn.Module, folder: Path) -> None:
            inner.save(model, folder)
            save_weights(self.codec, folder / CODEC)

        return replace(inner, start=start, save=save)

    @property
    def _kept(self) -> Path:
        return self.output_dir / f"mask_codec-{self.seed}-{self.codec_steps}.safetensors"

    @cached_property
    def codec(self) -> MaskCodec:
        """Trained when it is first asked for; a pure function of the seed and the steps."""
        if self._kept.is_file():
            return load_codec(self._kept).requires_grad_(False)
        with torch.random.fork_rng(), torch.enable_grad():
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
        all_tasks = TabletopVLM(self.model.resolution, self.codec, self.seed, texts=self.texts)
        mixed = min(max((step - self.seeing) / max(self.ramp, 1), 0.0), 1.0)
        shares = {task: mixed * share for task, share in all_tasks.shares.items()}
        shares["locate"] += 1 - mixed
        return replace(all_tasks, easy=1 - mixed * (1 - all_tasks.easy), shares=shares)
