"""Where PaliGemma's training starts: a SigLIP and a Gemma that have never met."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from backbone.gemma import GemmaConfig
from backbone.numerics import BIG_VISION, Numerics
from backbone.paligemma import PaliGemma, PaliGemmaConfig
from backbone.pretrained import as_dtype
from backbone.siglip import SigLIPConfig
from backbone.sources.paligemma_files import VOCAB
from backbone.sources.parts import gemma_files, siglip_files
from backbone.sources.places import Weights
from backbone.sources.read import read
from backbone.tokenizer import NUM_LOC, NUM_SEG
from backbone.weights import check_fit, fill, shapes_of

NEW_ROWS_STD = 0.02  # big_vision `models/ppp/gemma.py: load`
AVERAGE_ROWS_STD = 0.001
_log = logging.getLogger(__name__)


def from_parts(
    siglip: str | Path,
    gemma: str | Path,
    generator: torch.Generator,
    *,
    vocab: int = VOCAB,
    numerics: Numerics = BIG_VISION,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
    average_rows: bool = False,
) -> PaliGemma:
    """A PaliGemma whose towers are trained and whose projection is zero: stage 0 of the paper.

    siglip: a Hugging Face folder or big_vision's .npz file; its text tower and pooling head are
    left out, and logged. gemma: likewise; Gemma 1 or 2. vocab: rows of the token table, of which
    the last 1152, `<loc>` and `<seg>`, are drawn by `generator` (on the CPU) from N(0, 0.02²); the
    text rows come from `gemma`, whose further rows are left out. average_rows: draw the new ones
    around the mean of the text rows instead, N(mean, 0.001²): the paper's AvgEmb, whose noise was
    not published. It starts better and ends worse.
    Raises FileNotFoundError or ValueError, with nothing loaded, if a file is missing, not whole, or
    of another model.
    """
    model, tensors = outlined_parts(
        siglip,
        gemma,
        vocab=vocab,
        numerics=numerics,
        dtype=dtype,
        average_rows=average_rows,
    )
    fill(model, tensors(generator), device)
    return model


def outlined_parts(
    siglip: str | Path,
    gemma: str | Path,
    *,
    vocab: int = VOCAB,
    numerics: Numerics = BIG_VISION,
    dtype: torch.dtype | str = torch.float32,
    average_rows: bool = False,
) -> tuple[PaliGemma, Callable[[torch.Generator], Iterator[tuple[str, Tensor]]]]:
    """`from_parts` but for the numbers: the model on the meta device, and what gives the values of
    its parameters, each by name and once, one at a time. Raises as `from_parts` does."""
    text = vocab - NUM_LOC - NUM_SEG
    eyes, words = siglip_files(Path(siglip)), gemma_files(Path(gemma), text)
    config = PaliGemmaConfig(
        SigLIPConfig(**asdict(eyes.sizes)),
        GemmaConfig(**asdict(words.sizes), **words.gemma2),
        vocab,
        numerics,
    )
    with torch.device("meta"):
        model = PaliGemma(config).to(as_dtype(dtype))
    own = shapes_of(dict(model.named_parameters()))
    new = {name: shape for name, shape in own.items() if name.startswith("projector.")}
    found = new | eyes.weights.shapes | words.weights.shapes
    found["embedding.weight"] = (vocab, *found["embedding.weight"][1:])
    check_fit(own, found, f"{siglip} with {gemma}")
    for weights in (eyes.weights, words.weights):
        for key, why in weights.unused.items():
            _log.info("%s: %s left out: %s", weights.path, key, why)
    return model, lambda generator: _tensors(
        eyes.weights, words.weights, vocab, new, generator, average_rows
    )


def _tensors(
    eyes: Weights, words: Weights, vocab: int, new, generator: torch.Generator, average: bool
) -> Iterator[tuple[str, Tensor]]:
    table = {"embedding.weight": words.places["embedding.weight"]}
    rest = {name: place for name, place in words.places.items() if name not in table}
    for _, rows in read(replace(words, places=table)):
        drawn = torch.randn(vocab - len(rows), rows.shape[1], generator=generator)
        drawn = drawn * (AVERAGE_ROWS_STD if average else NEW_ROWS_STD)
        text = rows.float()
        yield "embedding.weight", torch.cat([text, text.mean(0) + drawn if average else drawn])
    yield from ((name, torch.zeros(shape)) for name, shape in new.items())
    yield from read(eyes)
    yield from read(replace(words, places=rest))
