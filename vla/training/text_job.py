"""Pretrain a PaliGemma on images with prompts and answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backbone.initialise import order_places
from backbone.paligemma import PaliGemma, PaliGemmaConfig
from backbone.pretrained import save_pretrained
from backbone.tokenizer import Tokenizer
from vla.config import RunConfig
from vla.data.tabletop_text import TabletopText
from vla.data.text import collate_text
from vla.training.job import Job, Microbatch
from vla.training.sampler import positions

HELD_OUT_SEED = 1_000_000  # added to the seed: scenes that training never draws


@dataclass(frozen=True, kw_only=True)
class TextConfig(RunConfig):
    """A PaliGemma trained from nothing on tabletop scenes, with its own text loss.

    Steps take turns: one camera, then all of `cameras`, so that the model serves both a lone picture
    and a robot's set of them. lone: see `TabletopText`.
    """

    model: PaliGemmaConfig
    cameras: tuple[str, ...] = ("top", "wrist")
    lone: float = 0.25

    def job(self) -> Job:
        tokenizer = Tokenizer.small()
        if tokenizer.vocab_size != self.model.vocab:
            raise ValueError(
                f"model.vocab is {self.model.vocab} but the small tokenizer has "
                f"{tokenizer.vocab_size} ids; set model.vocab={tokenizer.vocab_size}"
            )
        model = PaliGemma(self.model)
        order_places(model, tokenizer.loc(0))

        def batch(step: int, seed: int = self.seed) -> list[Microbatch]:
            count = 1 if step % 2 else len(self.cameras)
            resolution = self.model.vision.resolution
            scenes = TabletopText(resolution, self.cameras[:count], seed, self.lone)
            each = self.batch_size // self.accumulate
            indices = positions(step, self.batch_size)
            return [
                Microbatch(
                    (collate_text([scenes[i] for i in indices[k : k + each]], tokenizer),),
                    size=each,
                    samples=indices[k : k + each],
                )
                for k in range(0, self.batch_size, each)
            ]

        def held_out() -> Iterator[Microbatch]:
            for step in range(self.eval_batches):
                yield from batch(step, seed=self.seed + HELD_OUT_SEED)

        def save(folder: Path) -> None:
            save_pretrained(model, tokenizer, folder)

        return Job(model, batch, save, held_out, result="paligemma")
