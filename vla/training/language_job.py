"""Train a small Gemma on what is said of the tabletop, without pictures: stage 0's other part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from backbone.gemma import GemmaConfig
from backbone.gemma_alone import GemmaAlone, Texts, save_gemma
from backbone.tokenizer import NUM_LOC, NUM_SEG, Tokenizer
from envs.tabletop.scene import STANDARD, sample_scene
from vla.config import RunConfig
from vla.data.tabletop_questions import ask
from vla.data.tabletop_text import caption
from vla.training.job import Job, Microbatch
from vla.training.sampler import HELD_OUT_SEED, shares
from vla.training.start import drawn
from vla.training.world import ALONE, World

__all__ = ["LanguageConfig", "sentences"]


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(RunConfig):
    """A Gemma trained from nothing on captions and questions with their answers, as plain text.

    It has rows for text alone, none for `<loc>` and `<seg>`. The result, a folder `gemma` with the
    tokenizer, is a `GemmaForCausalLM` of Hugging Face, and what `StageConfig.gemma` starts from.
    """

    model: GemmaConfig

    def job(self, world: World = ALONE) -> Job:
        tokenizer = Tokenizer.small()
        with torch.device("meta"):
            model = GemmaAlone(self.model, tokenizer.vocab_size - NUM_LOC - NUM_SEG)

        def microbatches(seed: int, step: int, world: World) -> list[Microbatch]:
            parts = shares(step, self.batch_size, self.accumulate, world)
            return [
                Microbatch((sentences(seed, part, tokenizer),), len(part), part) for part in parts
            ]

        def held_out() -> Iterator[Microbatch]:
            for step in range(self.eval_batches):
                yield from microbatches(self.seed + HELD_OUT_SEED, step, ALONE)

        def save(model: nn.Module, folder: Path) -> None:
            assert isinstance(model, GemmaAlone)
            save_gemma(model, folder)
            tokenizer.save(folder)

        return Job(
            model,
            batch=lambda step: microbatches(self.seed, step, world),
            save=save,
            held_out=held_out,
            result="gemma",
            start=lambda outline: drawn(outline, self.seed),
        )


def sentences(seed: int, part: Sequence[int], tokenizer: Tokenizer) -> Texts:
    """A caption, or a question and its answer, at each of these positions: BOS, text, EOS."""
    rows = []
    for position in part:
        rng = np.random.default_rng((seed, position))
        scene = sample_scene(rng, STANDARD)
        if rng.random() < 0.5:
            text = caption(scene)
        else:
            question = ask(scene, rng)
            text = f"{question.text} {question.answer}"
        rows.append(tokenizer.encode(text, bos=True, eos=True))
    length = -(-max(map(len, rows)) // 8) * 8
    tokens = torch.full((len(rows), length), tokenizer.pad)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([[len(row)] for row in rows])
    return Texts(tokens, torch.arange(length) < lengths)
