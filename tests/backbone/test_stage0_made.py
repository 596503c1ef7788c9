"""The parts of stage 0 as they are made here: transformers reads them and computes the same."""

import math

import pytest
import torch
from transformers import GemmaForCausalLM, SiglipModel

from backbone.gemma import GemmaConfig
from backbone.gemma_alone import GemmaAlone, Texts, save_gemma
from backbone.siglip import SigLIPConfig
from backbone.siglip_pair import (
    PairBatch,
    SigLIPPair,
    SigLIPPairConfig,
    save_siglip,
    sigmoid_loss,
)
from backbone.stage0 import from_parts

PAIR = SigLIPPairConfig(
    SigLIPConfig(width=32, depth=2, mlp=48, heads=4, patch=8, resolution=32),
    vocab=50,
    text_depth=1,
    text_length=7,
)
GEMMA = GemmaConfig(width=32, depth=2, mlp=64, heads=2, head_dim=16)


def a_pair() -> SigLIPPair:
    torch.manual_seed(0)
    pair = SigLIPPair(PAIR).eval()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return pair


def batch(count: int = 3) -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1
    return PairBatch(images, torch.randint(0, 50, (count, 7), generator=generator))


def test_hugging_faces_siglip_gives_the_same_logits_and_loss(tmp_path):
    pair, data = a_pair(), batch()
    save_siglip(pair, tmp_path)
    theirs = SiglipModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = theirs(input_ids=data.tokens, pixel_values=data.images, return_loss=True)
        image, text = pair.embed(data)
        torch.testing.assert_close(found.image_embeds, image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.text_embeds, text, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.loss, pair(data), rtol=1e-4, atol=1e-5)


def test_the_sigmoid_loss_is_its_closed_form():
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    expected = (softplus(-2) + softplus(-1) + softplus(0.5) + softplus(0)) / 2
    assert sigmoid_loss(logits).item() == pytest.approx(expected)


def test_at_the_start_nearly_every_pair_is_told_to_be_none():
    """t = 10 and b = −10: big_vision's start, at which the loss is that of the matches alone."""
    torch.manual_seed(0)
    pair = SigLIPPair(PAIR)
    assert pair.scale.exp().item() == pytest.approx(10)
    assert pair.bias.item() == -10
    image, text = pair.embed(batch(1))
    assert pair(batch(1)).item() == pytest.approx(10 - 10 * (image @ text.T).item(), abs=0.1)


def test_hugging_faces_gemma_gives_the_same_logits(tmp_path):
    torch.manual_seed(0)
    model = GemmaAlone(GEMMA, vocab=120).eval()
    save_gemma(model, tmp_path)
    theirs = GemmaForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(5, 120, (2, 9), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 2
    texts = Texts(tokens, torch.ones_like(tokens, dtype=torch.bool))
    with torch.no_grad():
        found = theirs(input_ids=tokens, labels=tokens)
        torch.testing.assert_close(model.logits(texts), found.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(texts), found.loss, rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_the_loss_of_a_text():
    torch.manual_seed(0)
    model = GemmaAlone(GEMMA, vocab=120)
    tokens = torch.randint(5, 120, (1, 6), generator=torch.Generator().manual_seed(1))
    valid = torch.ones_like(tokens, dtype=torch.bool)
    pad = torch.nn.functional.pad
    torch.testing.assert_close(
        model(Texts(pad(tokens, (0, 3)), pad(valid, (0, 3)))), model(Texts(tokens, valid))
    )


def test_a_paligemma_starts_from_both(tmp_path):
    pair, gemma = a_pair(), GemmaAlone(GEMMA, vocab=120)
    save_siglip(pair, tmp_path / "siglip")
    save_gemma(gemma, tmp_path / "gemma")
    generator = torch.Generator().manual_seed(0)
    model = from_parts(tmp_path / "siglip", tmp_path / "gemma", generator, vocab=120 + 1152)
    assert model.config.vision == PAIR.vision
    assert model.config.language == GEMMA
    for part, made in ((model.vision, pair.vision), (model.language, gemma.language)):
        for ours, theirs in zip(part.parameters(), made.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(model.embedding.weight[:120], gemma.embedding.weight)
    assert not model.projector.weight.any()  # pyright: ignore


def test_new_rows_may_start_as_the_mean_of_the_others(tmp_path):
    gemma = GemmaAlone(GEMMA, vocab=120)
    save_siglip(a_pair(), tmp_path / "siglip")
    save_gemma(gemma, tmp_path / "gemma")
    model = from_parts(
        tmp_path / "siglip",
        tmp_path / "gemma",
        torch.Generator().manual_seed(0),
        vocab=120 + 1152,
        average_rows=True,
    )
    rows, mean = model.embedding.weight.detach(), gemma.embedding.weight.detach().mean(0)
    assert torch.equal(rows[:120], gemma.embedding.weight)
    assert (rows[120:] - mean).std().item() == pytest.approx(0.001, rel=0.05)
    assert (rows[120:].mean(0) - mean).abs().max() < 2e-4
