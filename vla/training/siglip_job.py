"""Train a small SigLIP on pictures of the tabletop and their captions: stage 0's image encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backbone.initialise import in_order
from backbone.siglip_pair import PairBatch, SigLIPPair, SigLIPPairConfig, save_siglip
from backbone.tokenizer import Tokenizer
from vla.config import RunConfig
from vla.data.examples import Examples
from vla.data.tabletop_vlm import TabletopVLM
from vla.training.job import Job, Microbatch
from vla.training.sampler import HELD_OUT_SEED, shares
from vla.training.start import drawn, encoder
from vla.training.world import ALONE, World

__all__ = ["SigLIPTrainConfig", "pairs"]


@dataclass(frozen=True, kw_only=True)
class SigLIPTrainConfig(RunConfig):
    """A SigLIP trained from nothing on captions of scenes. The result, a folder `siglip` with the
    tokenizer, is a `SiglipModel` of Hugging Face, and what `StageConfig.siglip` starts from.

    vision: folder of an image encoder to start from, as `VisionConfig` leaves it, so that patches
    know what lies where as those of SigLIP 2 do (arXiv 2502.14786, section 2.2: a decoder that
    tells boxes, dropped after training; ours are linear heads, before the contrastive loss instead
    of beside it).

    The loss compares each picture with all texts of the batch, those of the other processes
    included; so there is no accumulation. Captions that say the same of two scenes count as a
    mismatch, as in SigLIP.
    """

    model: SigLIPPairConfig
    vision: Path | None = None
    easy: float = 0.1  # share of scenes of the easier level

    def __post_init__(self):
        super().__post_init__()
        if self.accumulate > 1:
            raise ValueError(
                f"accumulate is {self.accumulate}, but each picture is compared with all texts of "
                "the batch; set accumulate=1"
            )

    def job(self, world: World = ALONE) -> Job:
        tokenizer = Tokenizer.small()
        if tokenizer.vocab_size > self.model.vocab:
            raise ValueError(
                f"model.vocab is {self.model.vocab} but the tokenizer has {tokenizer.vocab_size} "
                f"ids; set model.vocab={tokenizer.vocab_size}"
            )
        with torch.device("meta"):
            model = SigLIPPair(self.model)
        if world.size > 1:
            model.together = world.together
        given, tensors = encoder(model.vision, self.vision)

        def start(outline: nn.Module) -> Iterator[tuple[str, Tensor]]:
            yield from tensors()
            yield from in_order(drawn(outline, self.seed, without=given), self.model.vision)

        def microbatches(scenes: Examples, step: int, world: World) -> list[Microbatch]:
            parts = shares(step, self.batch_size, 1, world)
            return [
                Microbatch((pairs(scenes, part, tokenizer, self.model.text_length),), len(part))
                for part in parts
            ]

        def held_out() -> Iterator[Microbatch]:
            for step in range(self.eval_batches):
                yield from microbatches(self.captions(self.seed + HELD_OUT_SEED), step, ALONE)

        def save(model: nn.Module, folder: Path) -> None:
            assert isinstance(model, SigLIPPair)
            save_siglip(model, folder)
            tokenizer.save(folder)

        return Job(
            model,
            batch=lambda step: microbatches(self.captions(self.seed), step, world),
            save=save,
            held_out=held_out,
            result="siglip",
            start=start,
        )

    def captions(self, seed: int) -> Examples:
        """Scenes of which a caption is told; the i-th is always the same."""
        size = self.model.vision.resolution
        return TabletopVLM(size, seed=seed, easy=self.easy, shares={"caption": 1.0})


def pairs(scenes: Examples, part: Sequence[int], tokenizer: Tokenizer, length: int) -> PairBatch:
    """Pictures and captions at these positions; captions are cut at, or padded to, `length`."""
    examples = [scenes[i] for i in part]
    tokens = torch.full((len(examples), length), tokenizer.eos)
    for row, example in enumerate(examples):
        ids = tokenizer.encode(example.answer)[:length]
        tokens[row, : len(ids)] = torch.tensor(ids)
    images = torch.from_numpy(np.stack([e.images[0] for e in examples])).permute(0, 3, 1, 2)
    return PairBatch(images, tokens)
