"""Parameter counts of the published sizes, on the meta device: nothing is allocated."""

import pytest
import torch

from backbone.paligemma import (
    PALIGEMMA2_3B_224,
    PALIGEMMA2_10B_224,
    PALIGEMMA2_28B_224,
    PALIGEMMA_3B_224,
    PALIGEMMA_3B_448,
    PALIGEMMA_3B_896,
    PaliGemma,
)

UNTRAINED_ROWS = 64  # of Hugging Face's table: no checkpoint trains them


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("config", "hugging_face"),
    [
        (PALIGEMMA_3B_224, 2_923_466_480),
        (PALIGEMMA_3B_448, 2_924_351_216),
        (PALIGEMMA_3B_896, 2_927_890_160),
        (PALIGEMMA2_3B_224, 3_032_242_416),
        (PALIGEMMA2_10B_224, 9_662_638_832),
        (PALIGEMMA2_28B_224, 27_650_487_024),
    ],
)
def test_paligemma_has_the_published_number_of_parameters(config, hugging_face):
    with torch.device("meta"):
        model = PaliGemma(config)
    assert count(model) == hugging_face - UNTRAINED_ROWS * config.language.width


def test_each_part_has_its_share():
    with torch.device("meta"):
        model = PaliGemma(PALIGEMMA_3B_224)
    assert count(model) == 2_923_335_408
    assert count(model.vision) == 412_442_352
    assert count(model.projector) == 2_361_344
    assert count(model.language) == 1_981_884_416
    assert count(model.embedding) == 526_647_296


@pytest.mark.parametrize(
    ("config", "tokens"),
    [(PALIGEMMA_3B_224, 256), (PALIGEMMA_3B_448, 1024), (PALIGEMMA_3B_896, 4096)],
)
def test_an_image_becomes_the_papers_number_of_tokens(config, tokens):
    assert config.vision.tokens == tokens
