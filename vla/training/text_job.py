"""Pretrain a PaliGemma on images with prompts and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

from backbone.initialise import in_order
from backbone.paligemma import PaliGemma, PaliGemmaConfig
from backbone.pretrained import save_pretrained
from backbone.tokenizer import Tokenizer
from vla.config import RunConfig
from vla.data.examples import Examples
from vla.data.tabletop_text import TabletopText
from vla.data.text import TextExample, collate_text, row_length, tokens_read
from vla.training.job import Job, Microbatch
from vla.training.sampler import HELD_OUT_SEED, shares
from vla.training.start import drawn, encoder
from vla.training.world import ALONE, World


@dataclass(frozen=True, kw_only=True)
class TextConfig(RunConfig):
    """A PaliGemma trained from nothing on tabletop scenes, with its own text loss.

    It learns to see first: for `seeing` steps, all of them "locate everything" in easy scenes with
    one camera; then the share of the other tasks grows to 70 % and that of harder scenes to
    `standard` over `ramp` steps.
    From there on, steps take turns between one camera and all of `cameras`, so that the model
    serves both a lone picture and a robot's set of them.

    vision: folder of an image encoder to start from, as `VisionConfig` leaves it.
    """

    model: PaliGemmaConfig
    cameras: tuple[str, ...] = ("top", "wrist")
    seeing: int = 800
    ramp: int = 800
    standard: float = 0.5
    vision: Path | None = None

    def job(self, world: World = ALONE) -> Job:
        tokenizer = Tokenizer.small()
        if tokenizer.vocab_size != self.model.vocab:
            raise ValueError(
                f"model.vocab is {self.model.vocab} but the small tokenizer has "
                f"{tokenizer.vocab_size} ids; set model.vocab={tokenizer.vocab_size}"
            )
        with torch.device("meta"):
            model = PaliGemma(self.model)
        given, tensors = encoder(model.vision, self.vision)

        def start(outline: nn.Module) -> Iterator[tuple[str, Tensor]]:
            yield from tensors()
            rest = drawn(outline, self.seed, without=given)
            generator = torch.Generator().manual_seed(self.seed)
            yield from in_order(rest, self.model.vision, tokenizer.loc(0), generator)

        def batch(step: int) -> list[Microbatch]:
            return self._microbatches(self.scenes(step), step, tokenizer, world)

        def held_out() -> Iterator[Microbatch]:
            for step in range(self.eval_batches):
                yield from self._microbatches(self.unseen(), step, tokenizer, ALONE)

        def save(model: nn.Module, folder: Path) -> None:
            assert isinstance(model, PaliGemma)
            save_pretrained(model, tokenizer, folder)

        return Job(model, batch, save, held_out, result="paligemma", start=start)

    def unseen(self) -> Examples:
        """A stream that training never draws from."""
        return TabletopText(
            self.model.resolution,
            self.cameras,
            self.seed + HELD_OUT_SEED,
            standard=self.standard,
        )

    def scenes(self, step: int) -> Examples:
        """The stream that `step` draws from."""
        mixed = min(max((step - self.seeing) / max(self.ramp, 1), 0.0), 1.0)
        count = len(self.cameras) if step > self.seeing and step % 2 == 0 else 1
        return TabletopText(
            image_size=self.model.resolution,
            cameras=self.cameras[:count],
            seed=self.seed,
            locate=1 - 0.7 * mixed,
            standard=self.standard * mixed,
        )

    def _microbatches(
        self, examples: Examples, step: int, tokenizer: Tokenizer, world: World
    ) -> list[Microbatch]:
        """Of a step's examples; where there are several, the longest texts are in the last, so that
        the others are padded less."""

        def microbatch(part: Sequence[tuple[int, TextExample]]) -> Microbatch:
            batch = collate_text([example for _, example in part], tokenizer)
            tokens = tokens_read(batch, self.model.vision.tokens)
            names = [f"tabletop: scene {i}" for i, _ in part]
            return Microbatch((batch,), len(part), names, tokens=tokens)

        parts = shares(step, self.batch_size, self.accumulate, world)
        drawn = [(i, examples[i]) for part in parts for i in part]
        if len(parts) > 1:
            drawn.sort(key=lambda item: row_length(item[1], tokenizer))
        ends = list(accumulate(map(len, parts)))
        return [
            microbatch(drawn[end - len(part) : end]) for part, end in zip(parts, ends, strict=True)
        ]
