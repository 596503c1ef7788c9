"""Several texts about the same images in one row, held against each of them alone."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch.testing import assert_close

from backbone.design import Design
from backbone.masks import apart, block_mask, positions_apart, prefix_lm
from backbone.paligemma import PALIGEMMA_TINY, PaliGemma, TextBatch
from backbone.tokenizer import Tokenizer
from vla.data.text import TextExample, collate_text

T, F = True, False
TOKENIZER = Tokenizer.small()
TEXTS = (
    ("answer en is there a red square?", "yes"),
    ("detect blue plate", "<loc0100><loc0200><loc0300><loc0400> blue plate"),
    ("caption en", "a red square and a blue plate"),
)


def picture(text: torch.Tensor, suffix: torch.Tensor) -> str:
    valid = torch.ones_like(text, dtype=torch.bool)
    block = prefix_lm(text.shape[1] - suffix.shape[1], suffix)
    rows = (block_mask(block, block, valid) & apart(text))[0, 0].tolist()
    return "\n".join("".join("1" if seen else "." for seen in row) for row in rows)


def test_mask_picture_of_two_texts():
    text = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2]])
    suffix = torch.tensor([[F, F, T, F, T, T]])
    assert picture(text, suffix) == "\n".join(
        [
            "1111....",
            "1111....",
            "1111....",
            "1111....",
            "11111...",
            "11...1..",
            "11...11.",
            "11...111",
        ]
    )


def test_each_text_is_numbered_from_where_the_images_end():
    text = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 3]])
    valid = torch.tensor([[T, F, T, T, T, T, T, T, T]])
    assert positions_apart(valid, text).tolist() == [[0, 0, 1, 2, 3, 2, 3, 4, 2]]


def model(causal: Literal["answer", "text", "all"], window: int | None = None) -> PaliGemma:
    torch.manual_seed(0)
    language = replace(PALIGEMMA_TINY.language, window=window)
    config = replace(PALIGEMMA_TINY, language=language, design=Design(causal=causal))
    made = PaliGemma(config).double().eval()
    torch.nn.init.normal_(made.get_parameter("projector.weight"), std=0.5)
    return made


def examples(texts: tuple[tuple[str, str], ...]) -> TextExample:
    images = torch.randint(256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(1))
    first, *also = texts
    return TextExample(images.byte().numpy(), *first, also=tuple(also))


def logits(made: PaliGemma, batch: TextBatch, row: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return made.logits(batch)[row, batch.token_valid[row]]


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(("causal", "same"), [("answer", 1), ("text", 3), ("all", 3)])
def test_texts_in_one_row_are_read_as_if_alone(causal, same, window):
    """All of them where images see no prompt; else the first, whose prompt they see."""
    made = model(causal, window)
    together = collate_text([examples(TEXTS), examples(TEXTS[:1])], TOKENIZER)
    assert together.text is not None
    whole, number = logits(made, together), together.text[0, together.token_valid[0]]
    for k, text in enumerate(TEXTS):
        alone = logits(made, collate_text([examples((text,))], TOKENIZER))
        equal = torch.allclose(whole[number == k + 1], alone, atol=1e-9)
        assert equal == (k < same)
    assert_close(
        logits(made, together, 1), logits(made, collate_text([examples(TEXTS[:1])], TOKENIZER))
    )


def test_the_loss_of_a_row_is_the_mean_of_its_texts():
    made = model("text")
    with torch.no_grad():
        alone = [made(collate_text([examples((text,))], TOKENIZER)) for text in TEXTS]
        together = made(collate_text([examples(TEXTS), examples(TEXTS[:1])], TOKENIZER))
        assert_close(together, (torch.stack(alone).mean() + alone[0]) / 2)


def test_texts_cut_away_count_for_nothing():
    made, length = model("text"), 14
    with torch.no_grad():
        cut = made(collate_text([examples(TEXTS)], TOKENIZER, length))
        alone = made(collate_text([examples(TEXTS[:1])], TOKENIZER, length))
        assert_close(cut, alone)
